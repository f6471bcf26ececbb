"""A project on top of diffusion-forcing: a dataset, an algorithm, and an experiment with a task of its own."""

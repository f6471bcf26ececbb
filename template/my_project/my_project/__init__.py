"""A project with diffusion-forcing: a dataset, an algorithm, and an experiment with its own task."""

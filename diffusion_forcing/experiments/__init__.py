"""Experiments: a class whose public methods are tasks, and how Lightning is set up to run them."""

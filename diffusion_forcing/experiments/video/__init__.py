"""Training and evaluating video models."""

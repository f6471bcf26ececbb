"""A run's folder: its logs, images, videos and tables, one page to read them, and copies for W&B and TensorBoard."""

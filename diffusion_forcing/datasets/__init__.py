"""Data sets: mazes, video, time series and robot demonstrations. Each yields batches of `batch.py` in the units of the data."""

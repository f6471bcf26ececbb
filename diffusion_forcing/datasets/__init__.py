"""Mazes, video, time series and robot demonstrations: data sets that yield the batches of `batch.py`."""

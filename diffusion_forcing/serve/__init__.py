"""Trained models that answer others: the robot's policy server."""

"""Servers of trained models: the robot's policy server."""

"""Trajectories in mazes: generated here, or read from D4RL and Minari files."""

"""Demonstrations of a robot: from files, LeRobot data sets, or the simulator."""

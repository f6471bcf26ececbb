"""Clips of video with the actions that led to each frame: from folders, archives, or a simulator."""

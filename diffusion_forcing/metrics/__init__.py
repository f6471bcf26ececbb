"""Scores as pure functions of arrays: no environment, no file, no network; the inputs are never edited."""

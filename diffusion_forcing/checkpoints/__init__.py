"""Checkpoints: our format, released files, and where `load=` and `resume=` look. torch and safetensors, no Lightning."""

from diffusion_forcing.checkpoints.format import LoadedCheckpoint, export, load, save
from diffusion_forcing.checkpoints.places import latest, push, resolve, shipped

__all__ = ["LoadedCheckpoint", "export", "latest", "load", "push", "resolve", "save", "shipped"]

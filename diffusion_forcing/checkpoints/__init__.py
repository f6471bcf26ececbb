"""Checkpoints: our own format, released ones, and how `load=` and `resume=` find them. Needs torch and safetensors, not
Lightning."""

from diffusion_forcing.checkpoints.export import export
from diffusion_forcing.checkpoints.format import load, save
from diffusion_forcing.checkpoints.loaded import LoadedCheckpoint
from diffusion_forcing.checkpoints.resolve import latest, resolve, shipped

__all__ = ["LoadedCheckpoint", "export", "latest", "load", "resolve", "save", "shipped"]

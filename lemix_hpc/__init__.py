"""Serve a language model and keep training it on the same devices, inside ordinary Slurm allocations."""

__version__ = "0.1.0"

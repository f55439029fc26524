"""The command `diffusers-ndc`."""

from .main import main as main


__all__ = ["main"]

"""The networks of Karras et al. 2022 (arXiv:2206.00364) and their published checkpoints."""

from .checkpoint import EDMCheckpoint, read_checkpoint
from .conversion import convert_network, convert_scheduler, read_checkpoints
from .schedulers import IDDPMPrecondScheduler, VEPrecondScheduler, VPPrecondScheduler
from .unet import EDMUNet2DModel


__all__ = [
    "EDMCheckpoint",
    "EDMUNet2DModel",
    "IDDPMPrecondScheduler",
    "VEPrecondScheduler",
    "VPPrecondScheduler",
    "convert_network",
    "convert_scheduler",
    "read_checkpoint",
    "read_checkpoints",
]

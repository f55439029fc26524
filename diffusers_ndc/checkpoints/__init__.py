"""The networks of Karras et al. 2022 (arXiv:2206.00364) and their published checkpoints.

`read_checkpoints` reads everything that a classifier needs. For a single checkpoint, `read_checkpoint` reads the file,
`convert_network` makes the network, and `convert_scheduler` the scheduler.
"""

from .edm import convert_network, convert_scheduler, read_checkpoints
from .edm_schedulers import IDDPMPrecondScheduler, VEPrecondScheduler, VPPrecondScheduler
from .edm_unet import EDMUNet2DModel
from .files import EDMCheckpoint, read_checkpoint


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

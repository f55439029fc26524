"""Published checkpoints as networks and schedulers of diffusers: of Karras et al. 2022 (EDM), and of OpenAI.

`read_checkpoints` reads everything that a classifier needs from checkpoints of EDM (arXiv:2206.00364),
`read_openai_checkpoints` from those of guided-diffusion (arXiv:2105.05233) and improved-diffusion (arXiv:2102.09672).
An unconditional network beside the class-conditional one may be of either family.
For a single checkpoint, `read_checkpoint` reads the file, `convert_network` makes the network, and `convert_scheduler`
the scheduler. For one of OpenAI's, these are `read_openai_checkpoint`, `convert_openai_network` and
`convert_openai_scheduler`.
"""

from .edm import convert_network, convert_scheduler
from .edm_schedulers import IDDPMPrecondScheduler, VEPrecondScheduler, VPPrecondScheduler
from .edm_unet import EDMUNet2DModel
from .files import EDMCheckpoint, read_checkpoint
from .openai import (
    OpenAICheckpoint,
    convert_openai_network,
    convert_openai_scheduler,
    read_openai_checkpoint,
)
from .openai_arguments import OpenAIArguments
from .openai_unet import OpenAIUNet2DModel
from .pairs import CheckpointPair, read_checkpoints, read_openai_checkpoints


__all__ = [
    "CheckpointPair",
    "EDMCheckpoint",
    "EDMUNet2DModel",
    "IDDPMPrecondScheduler",
    "OpenAIArguments",
    "OpenAICheckpoint",
    "OpenAIUNet2DModel",
    "VEPrecondScheduler",
    "VPPrecondScheduler",
    "convert_network",
    "convert_openai_network",
    "convert_openai_scheduler",
    "convert_scheduler",
    "read_checkpoint",
    "read_checkpoints",
    "read_openai_checkpoint",
    "read_openai_checkpoints",
]

"""From pixels to the space in which a latent diffusion model lives."""

import torch
from diffusers import AutoencoderKL
from torch import nn


class LatentEncoder(nn.Module):
    """The encoder of a latent diffusion model (Rombach et al. 2022, arXiv:2112.10752), without its sampling.

    An image has one latent, the mode of the encoder's distribution: `(mode - shift_factor) * scaling_factor`, which is
    what the diffusion model was trained to denoise.

    Args:
        vae: The autoencoder.
        channels: Of the latents that the diffusion model takes.

    Raises:
        TypeError: `vae` is no `AutoencoderKL`.
        ValueError: Its latents have other channels, or are normalised channel by channel (`latents_mean`,
            `latents_std`), which is not supported.
    """

    def __init__(self, vae: AutoencoderKL, channels: int):
        super().__init__()
        if not isinstance(vae, AutoencoderKL):
            raise TypeError(f"`vae` is a {type(vae).__name__}; accepted is an AutoencoderKL.")
        for setting in ("latents_mean", "latents_std"):
            if vae.config[setting] is not None:
                raise ValueError(f"`vae` has {setting}={vae.config[setting]}; accepted is None.")
        if vae.config.latent_channels != channels:
            raise ValueError(
                f"`vae` has {vae.config.latent_channels} latent channels and the network in_channels={channels}; "
                "accepted are as many."
            )
        self.vae = vae

    @property
    def downscaling(self) -> int:
        """Side of the patch of pixels that one latent stands for."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Latents of images, in their dtype.

        Args:
            images: Shape `(N, C, H, W)`, in [-1, 1].
        """
        config = self.vae.config
        latents = self.vae.encode(images.to(self.vae.dtype)).latent_dist.mode()
        return (latents.to(images.dtype) - (config.shift_factor or 0)) * config.scaling_factor

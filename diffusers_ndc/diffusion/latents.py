"""From pixels to the latents of a latent diffusion model."""

import torch
from diffusers import AutoencoderKL
from torch import nn


class LatentEncoder(nn.Module):
    """The encoder of a latent diffusion model (Rombach et al. 2022, arXiv:2112.10752), without its sampling.

    The latent of an image is the mode of the encoder's distribution, `(mode - shift_factor) * scaling_factor`, scaled
    as in the training of the diffusion model.

    Args:
        vae: The autoencoder.
        channels: Number of channels of the latents that the diffusion model takes.

    Raises:
        TypeError: `vae` is not an `AutoencoderKL`.
        ValueError: Its latents have another number of channels, or are normalised channel by channel (`latents_mean`,
            `latents_std`), which is not supported.
    """

    def __init__(self, vae: AutoencoderKL, channels: int):
        super().__init__()
        if not isinstance(vae, AutoencoderKL):
            raise TypeError(f"`vae` must be an AutoencoderKL, got {type(vae).__name__}.")
        for setting in ("latents_mean", "latents_std"):
            if vae.config[setting] is not None:
                raise ValueError(f"`vae` must have {setting}=None, got {setting}={vae.config[setting]}.")
        if vae.config.latent_channels != channels:
            raise ValueError(
                f"`vae` must have {channels} latent channels, as many as the network's in_channels, got "
                f"{vae.config.latent_channels}."
            )
        self.vae = vae

    @property
    def downscaling(self) -> int:
        """Side, in pixels, of the square that one latent value stands for."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Encode images.

        Args:
            images: Shape `(N, C, H, W)`, in [-1, 1].

        Returns:
            Latents of shape `(N, channels, H / downscaling, W / downscaling)`, in the dtype of `images`.
        """
        config = self.vae.config
        shift = config.shift_factor or 0
        mode = self.vae.encode(images.to(self.vae.dtype)).latent_dist.mode()
        return (mode.to(images.dtype) - shift) * config.scaling_factor

"""The network that is trained, and what it is trained for."""

import torch
from diffusers import DDPMScheduler, EDMEulerScheduler, UNet2DModel

from ..diffusion.denoiser import Denoiser
from .images import TrainingImages
from .settings import TrainingSettings


def build_denoiser(settings: TrainingSettings, data: TrainingImages) -> Denoiser:
    """The network with its scheduler, as a denoiser.

    Raises:
        TypeError, ValueError: `unet_config` does not fit a `UNet2DModel`.
    """
    height, width = data.size
    num_classes = len(data.class_names)
    null_class = num_classes if settings.label_dropout > 0 else None
    unet = UNet2DModel(
        sample_size=height if height == width else (height, width),
        in_channels=data.channels,
        out_channels=data.channels,
        num_class_embeds=num_classes + (null_class is not None),
        **settings.unet_arguments,
    )
    if settings.objective == "edm":
        scheduler = EDMEulerScheduler(sigma_data=settings.sigma_data)
    else:
        scheduler = DDPMScheduler(prediction_type=settings.prediction_type)
    return Denoiser(unet, scheduler, num_classes, null_class)


def draw_noise_levels(
    n: int, scheduler: DDPMScheduler | EDMEulerScheduler, device: torch.device, settings: TrainingSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise levels for n images, and the weights that turn the squared errors of the denoised images into the loss.

    edm: log-normal sigma and `lambda(sigma)` (Karras et al. 2022, Table 1). ddpm: a uniform timestep, and the weight
    that gives the mean squared error of the network's own prediction (Ho et al. 2020, eq. 14).

    Args:
        n: Number of images.
        scheduler: Scheduler of the network.
        device: Where the levels are drawn, or moved to.
        settings: The objective.

    Returns:
        Levels, model units, and weights, both of shape `(n,)`.
    """
    if settings.objective == "edm":
        sigma = torch.exp(settings.p_mean + settings.p_std * torch.randn(n, device=device))
        return sigma, (sigma**2 + settings.sigma_data**2) / (sigma * settings.sigma_data) ** 2
    steps = torch.randint(len(scheduler.alphas_cumprod), (n,))
    alphas = scheduler.alphas_cumprod[steps].to(device)
    sigma = ((1 - alphas) / alphas).sqrt()
    weights = {"epsilon": sigma**-2, "v_prediction": 1 + sigma**-2, "sample": torch.ones_like(sigma)}
    return sigma, weights[settings.prediction_type]

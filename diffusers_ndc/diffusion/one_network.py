"""One network in its own coordinates: what it is given of a noisy image, and what its output says of the clean one."""

import math

import torch
from diffusers import ModelMixin

from ..common.checks import check_number
from ..common.images import check_floating
from .conditioning import Conditioning
from .parametrisation import Parametrisation


SAME_NOISE = 1e-3
"""Largest relative difference at which a noise level counts as that of a training step."""


def denoise_with(
    network: ModelMixin,
    conditioning: Conditioning,
    parametrisation: Parametrisation,
    x_sigma: torch.Tensor,
    sigma: torch.Tensor,
    labels: torch.Tensor,
    batch_size: int | None,
) -> torch.Tensor:
    """Denoise with one network: parametrise, call the network batch by batch, recover `x0` from its output.

    Args:
        network: The network.
        conditioning: How it learns of the class.
        parametrisation: What its scheduler means by noise levels.
        x_sigma: Noisy images `x + sigma * eps`, model units, shape `(N, C, H, W)`, float32 or float64.
        sigma: Noise levels, model units, shape `(N,)`, in the dtype of `x_sigma`.
        labels: Shape `(N,)`.
        batch_size: Images per network evaluation; `None`: all of them.

    Returns:
        Denoised images with the shape and dtype of `x_sigma`.
    """
    sigma_by_image = sigma.view(-1, 1, 1, 1)
    dtype = next(network.parameters()).dtype
    if dtype.itemsize == 1:
        # Weights are only stored in eight bits. `network.dtype` is what the network computes in, but it walks
        # through all modules, too slowly to be asked in every batch of every network.
        dtype = network.dtype
    network_input = parametrisation.network_input(x_sigma, sigma_by_image).to(dtype)
    time = parametrisation.network_time(sigma)
    size = len(x_sigma) if batch_size is None else batch_size
    outputs = []
    for first in range(0, len(x_sigma), size):
        batch = slice(first, first + size)
        arguments = conditioning(labels[batch])
        outputs.append(network(network_input[batch], time[batch], return_dict=False, **arguments)[0])
    output = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    mean = output[:, : x_sigma.shape[1]]  # a learned variance comes after the mean
    return parametrisation.denoised(x_sigma, sigma_by_image, mean.to(x_sigma.dtype))


def check_noise(sigma: torch.Tensor | float, num_images: int, parametrisation: Parametrisation) -> None:
    """Raise unless a network can be told these noise levels of images.

    Args:
        sigma: Noise level, model units, a number or one for each image.
        num_images: Number of images.
        parametrisation: What the network's scheduler means by noise levels.

    Raises:
        TypeError: `sigma` has the wrong type.
        ValueError: It has the wrong shape, is not above 0, or is not the noise of a training step although the network
            knows whole steps only.
    """
    expected = f"a noise level above 0 (model units), or a tensor of {num_images}"
    if isinstance(sigma, torch.Tensor):
        check_floating(sigma, "sigma")
    else:
        check_number("sigma", sigma, expected)
    levels = sigma if isinstance(sigma, torch.Tensor) else torch.tensor(float(sigma))
    if levels.shape not in ((), (num_images,)) or not ((levels > 0) & levels.isfinite()).all():
        raise ValueError(f"`sigma` must be {expected}, got {sigma}.")
    if parametrisation.step_sigmas is None:
        return
    for level in torch.as_tensor(sigma).flatten().tolist():
        nearest = parametrisation.nearest_sigma(level)
        if not math.isclose(level, nearest, rel_tol=SAME_NOISE):
            raise ValueError(
                "`sigma` must be the noise level of a training step, since the network has a learned time "
                f"embedding, such as {nearest:.6g} (model units), got {level}."
            )

"""Tiny networks of the published kinds, with random weights but for the last layer, which has seen the images.

The last layer is fitted by least squares, so that the networks denoise the images of a stand-in a little, and know a
class when they are told it. Nothing can be calibrated with networks that know nothing.
"""

import math
from pathlib import Path

import torch
from published_files import save_published
from published_networks import improved_diffusion_shapes, published_shapes, random_weights

from diffusers_ndc.checkpoints import (
    EDMCheckpoint,
    OpenAIArguments,
    convert_network,
    convert_openai_network,
    convert_openai_scheduler,
    read_openai_checkpoint,
)


SIGMAS = (0.5, 1.0, 2.0, 4.0)
"""Noise levels that the networks have seen, model units."""

SIGMA_DATA = 0.5


def make_network(path: Path, images: torch.Tensor, labels: torch.Tensor, arguments: dict | None, seed: int) -> None:
    """Write a network of the kind, and in the format, of a published file.

    Args:
        path: The file. Its name, that of the published file, tells the kind.
        images: Images that it shall know, shape `(N, 3, H, H)`, in [-1, 1].
        labels: Their classes, shape `(N,)`.
        arguments: How a network of OpenAI is said to be trained.
        seed: Seed of the weights.
    """
    if path.suffix == ".pt":
        make_openai_network(path, images, OpenAIArguments(**(arguments or {})), seed)
    else:
        make_edm_network(path, images, None if "uncond" in path.name else labels, seed)


def make_edm_network(path: Path, images: torch.Tensor, labels: torch.Tensor | None, seed: int) -> None:
    """Write a network of EDM: ADM or DDPM++."""
    size = images.shape[-1]
    arguments = {
        "img_resolution": size,
        "img_channels": 3,
        "label_dim": 0 if labels is None else int(labels.max()) + 1,
    }
    if "adm" in path.name:
        kind = {"model_type": "DhariwalUNet", "model_channels": 32, "channel_mult": [4, 4], "attn_resolutions": []}
        arguments, last = {**arguments, **kind, "num_blocks": 0}, "model.out_conv"
    else:
        kind = {"model_type": "SongUNet", "model_channels": 16, "channel_mult": [1, 1], "attn_resolutions": [16]}
        arguments, last = {**arguments, **kind, "num_blocks": 1, "augment_dim": 9}, f"model.dec.{size}x{size}_aux_conv"
    weights = random_weights(published_shapes("EDMPrecond", arguments), seed)
    checkpoint = EDMCheckpoint("EDMPrecond", arguments, weights, path.name)
    network = convert_network(checkpoint)
    seen = []
    for sigma, _, noisy in noisy_images(images, SIGMAS, seed):
        scale = math.hypot(sigma, SIGMA_DATA)
        told = {} if labels is None else {"class_labels": labels}
        features = features_of(network, noisy / scale, torch.tensor(math.log(sigma) / 4), **told)
        skipped = noisy * (SIGMA_DATA / scale) ** 2
        seen.append((features, (images - skipped) * scale / (sigma * SIGMA_DATA)))
    fit_last_layer(weights, last, seen)
    save_published(path, checkpoint)


def make_openai_network(path: Path, images: torch.Tensor, arguments: OpenAIArguments, seed: int) -> None:
    """Write a network of improved-diffusion without classes."""
    weights = random_weights(improved_diffusion_shapes(32, [1, 1, 1], 1, [False, False, True]), seed)
    torch.save(weights, path)
    checkpoint = read_openai_checkpoint(path, arguments)
    network, kept = convert_openai_network(checkpoint), convert_openai_scheduler(checkpoint).alphas_cumprod
    times = [int((((1 - kept) / kept).sqrt() - sigma).abs().argmin()) for sigma in SIGMAS]
    sigmas = [math.sqrt((1 - kept[time]) / kept[time]) for time in times]
    seen = []
    for time, (_, noise, noisy) in zip(times, noisy_images(images, sigmas, seed), strict=True):
        seen.append((features_of(network, noisy * kept[time].sqrt(), torch.tensor(time)), noise))
    fit_last_layer(weights, "out.2", seen)
    torch.save(weights, path)


def noisy_images(images: torch.Tensor, sigmas: list[float] | tuple[float, ...], seed: int):
    """Noise level, noise and noisy images."""
    generator = torch.Generator().manual_seed(seed)
    for sigma in sigmas:
        noise = torch.randn(images.shape, generator=generator)
        yield sigma, noise, images + sigma * noise


@torch.no_grad()
def features_of(network: torch.nn.Module, images: torch.Tensor, time: torch.Tensor, **told) -> torch.Tensor:
    """What the last layer of a network is given."""
    given = []
    hook = network.conv_out.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    network(images, time, **told)
    hook.remove()
    return given[0]


def fit_last_layer(weights: dict[str, torch.Tensor], name: str, seen: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Fit the middle of the last convolution, and its bias, to outputs by least squares.

    Args:
        weights: Weights of the network, changed here.
        name: Name of its last convolution.
        seen: Inputs of the convolution, and the outputs that it should have.
    """
    inputs = torch.cat([features.movedim(1, -1).flatten(0, 2) for features, _ in seen]).double()
    outputs = torch.cat([output.movedim(1, -1).flatten(0, 2) for _, output in seen]).double()
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=torch.double)], dim=1)
    fitted = torch.linalg.lstsq(inputs, outputs).solution.float()
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    weight[:3] = 0
    weight[:3, :, 1, 1] = fitted[:-1].T
    bias[:3] = fitted[-1]

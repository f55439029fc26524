"""The noised diffusion classifiers of Chen et al. (arXiv:2402.02316), as the paper has them: start reading here.

One noisy copy, classes one by one, all levels of a class in one batch. `NoisedDiffusionClassifier` computes the same
for many copies at once, and drops classes on the way; it is tested against these functions.

Shapes and units: `x_tau` is the noisy copy, `(C, H, W)`, model units (images in [-1, 1]), with noise `tau`; `levels`
are T noise levels above `tau`, with weights; `eps` is standard normal noise, `(T, C, H, W)`, which all classes share.
Each function returns the logits `-sum_i w_i * ||h(x_i, sigma_i, y) - target_i||^2`, shape `(K,)`.
"""

import torch

from .denoiser import Denoiser
from .noise_levels import NoiseLevels


def apndc_logits(
    denoiser: Denoiser, x_tau: torch.Tensor, tau: float, levels: NoiseLevels, eps: torch.Tensor
) -> torch.Tensor:
    """APNDC: the posterior mean is approximated by the one-step denoised image `h(x_tau, tau)`."""
    sigma = x_tau.new_tensor(levels.sigmas).view(-1, 1, 1, 1)
    x_i = x_tau + (sigma**2 - tau**2).sqrt() * eps
    target = denoiser(x_tau[None], tau)
    return _logits(denoiser, x_i, levels, target)


def apndc_clean_logits(
    denoiser: Denoiser, x_tau: torch.Tensor, tau: float, levels: NoiseLevels, eps: torch.Tensor
) -> torch.Tensor:
    """APNDC with clean re-noising, as in the authors' certification program: noise is added to the denoised image."""
    sigma = x_tau.new_tensor(levels.sigmas).view(-1, 1, 1, 1)
    target = denoiser(x_tau[None], tau)
    return _logits(denoiser, target + sigma * eps, levels, target)


def epndc_logits(
    denoiser: Denoiser, x_tau: torch.Tensor, tau: float, levels: NoiseLevels, eps: torch.Tensor
) -> torch.Tensor:
    """EPNDC: the exact posterior, whose mean given `x_tau` and `x_i` is compared with the model's."""
    sigma = x_tau.new_tensor(levels.sigmas).view(-1, 1, 1, 1)
    x_i = x_tau + (sigma**2 - tau**2).sqrt() * eps
    target = (sigma**2 * x_tau - tau**2 * x_i) / (sigma**2 - tau**2)
    return _logits(denoiser, x_i, levels, target)


def _logits(denoiser: Denoiser, x_i: torch.Tensor, levels: NoiseLevels, target: torch.Tensor) -> torch.Tensor:
    sigmas, weights = x_i.new_tensor(levels.sigmas), x_i.new_tensor(levels.weights)
    logits = []
    for y in range(denoiser.num_classes):
        h = denoiser(x_i, sigmas, torch.full((len(levels),), y, device=x_i.device))
        errors = (h - target).square().sum(dim=(1, 2, 3))
        logits.append(-(weights * errors).sum())
    return torch.stack(logits)

"""Likelihood surrogates: how the noisier image `x_i` is made, and what its denoised version is compared with.

Chen et al., arXiv:2402.02316. All of them score a class by `sum_i w_i * ||h(x_i, sigma_i, y) - target_i||^2`. Each is
a function

    pair(x_tau, x0_hat, tau, sigma, eps) -> (x_i, target)

in VE coordinates and model units. `x_tau` is the image (carrying noise `tau`), `x0_hat = h(x_tau, tau, null)` its
one-step denoised version (`None` unless `uses_denoised`), `sigma > tau` the level, and `eps` standard normal noise.
Tensors broadcast.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Likelihood:
    """One likelihood surrogate.

    Args:
        name: Its name as a `method`.
        pair: The function `pair(x_tau, x0_hat, tau, sigma, eps) -> (x_i, target)`.
        noised: Whether the images carry Gaussian noise (`tau > 0`). Only then can randomized smoothing certify them.
        uses_denoised: Whether `pair` needs `x0_hat`.
    """

    name: str
    pair: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    noised: bool = True
    uses_denoised: bool = False


def _dc(x_tau, x0_hat, tau, sigma, eps):
    x_i = x_tau + sigma * eps
    return x_i, x_tau


def _epndc(x_tau, x0_hat, tau, sigma, eps):
    x_i = x_tau + (sigma**2 - tau**2).sqrt() * eps
    return x_i, (sigma**2 * x_tau - tau**2 * x_i) / (sigma**2 - tau**2)


def _apndc(x_tau, x0_hat, tau, sigma, eps):
    x_i = x_tau + (sigma**2 - tau**2).sqrt() * eps
    return x_i, x0_hat


def _apndc_clean(x_tau, x0_hat, tau, sigma, eps):
    x_i = x0_hat + sigma * eps
    return x_i, x0_hat


LIKELIHOODS = {
    likelihood.name: likelihood
    for likelihood in (
        Likelihood("dc", _dc, noised=False),  # the diffusion classifier: the ELBO of a clean image
        Likelihood("epndc", _epndc),  # exact posterior: the ELBO of the noisy image, with an unbiased target
        Likelihood("apndc", _apndc, uses_denoised=True),  # its posterior mean approximated by the denoised image
        Likelihood("apndc-clean", _apndc_clean, uses_denoised=True),  # DC of the denoised image
    )
}


def get_likelihood(method: str | None, sigma: float) -> Likelihood:
    """The likelihood called `method`.

    Args:
        method: `dc`, `epndc`, `apndc` or `apndc-clean`. Default: `dc` for clean images (`sigma == 0`), `apndc` for
            noisy images.
        sigma: Noise that the images carry, pixel units.

    Raises:
        ValueError: `method` is unknown, or is for clean images while `sigma` is above 0, or the other way round.

    Example:
        >>> get_likelihood(None, sigma=0.25).name
        'apndc'
    """
    if method is None:
        method = "apndc" if sigma > 0 else "dc"
    if not isinstance(method, str) or method not in LIKELIHOODS:
        raise ValueError(f"`method` must be one of {tuple(LIKELIHOODS)}, got {method!r}.")
    likelihood = LIKELIHOODS[method]
    if likelihood.noised and not sigma > 0:
        raise ValueError(f"`sigma` must be above 0 with method={method!r}, which is for noisy images, got {sigma}.")
    if sigma > 0 and not likelihood.noised:
        raise ValueError(f"`sigma` must be 0 with method={method!r}, which is for clean images, got {sigma}.")
    return likelihood

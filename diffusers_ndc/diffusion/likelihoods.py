"""Likelihood surrogates: where the noisier image `x_i` is drawn, and what its denoised version is compared with.

Chen et al., arXiv:2402.02316. All score a class by `sum_i w_i * ||h(x_i, sigma_i, y) - target_i||^2`, and each is a
function

    pair(x_tau, x0_hat, tau, sigma, eps) -> (x_i, target)

in VE coordinates and model units, with `x_tau` the image (carrying noise `tau`), `x0_hat = h(x_tau, tau, null)` its
one-step denoised version (where `uses_denoised`), `sigma > tau` the level and `eps` standard normal noise. Tensors
broadcast.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Likelihood:
    """One likelihood surrogate.

    Args:
        name: The `method` by which users call it.
        pair: The function described above.
        noised: Whether it is for images that carry Gaussian noise (`tau > 0`), and so can be certified.
        uses_denoised: Whether it needs `x0_hat`.
    """

    name: str
    pair: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    noised: bool = True
    uses_denoised: bool = False


def _dc(x_tau, x0_hat, tau, sigma, eps):
    return x_tau + sigma * eps, x_tau


def _epndc(x_tau, x0_hat, tau, sigma, eps):
    extra = sigma**2 - tau**2
    x_i = x_tau + extra.sqrt() * eps
    return x_i, (sigma**2 * x_tau - tau**2 * x_i) / extra


def _apndc(x_tau, x0_hat, tau, sigma, eps):
    return x_tau + (sigma**2 - tau**2).sqrt() * eps, x0_hat


def _apndc_clean(x_tau, x0_hat, tau, sigma, eps):
    return x0_hat + sigma * eps, x0_hat


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
    """The likelihood called `method`, by default `dc` for clean images (`sigma == 0`) and `apndc` for noisy ones.

    Raises:
        ValueError: `method` is unknown, or does not go with `sigma`.
    """
    method = ("apndc" if sigma > 0 else "dc") if method is None else method
    if not isinstance(method, str) or method not in LIKELIHOODS:
        raise ValueError(f"`method` is {method!r}; accepted are {tuple(LIKELIHOODS)}.")
    likelihood = LIKELIHOODS[method]
    if likelihood.noised != (sigma > 0):
        accepted = "above 0, the noise that the image carries" if likelihood.noised else "0, as it is for clean images"
        raise ValueError(f"`sigma` is {sigma} with method={method!r}; accepted is {accepted}.")
    return likelihood

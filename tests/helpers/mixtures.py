"""Perfect networks for classes that are Gaussians, whose denoisers are known in closed form."""

from types import SimpleNamespace

import torch
from torch import nn


SIDE, SPREAD = 4, 0.3


class GaussianMixtureNetwork(nn.Module):
    """The perfect EDM network for classes `x ~ N(mean_y, SPREAD^2)`: its denoiser is the posterior mean in closed
    form."""

    def __init__(self, means):
        super().__init__()
        self.means = nn.Parameter(means)
        self.class_embedding = nn.Embedding(len(means) + 1, 1)
        self.config = SimpleNamespace(
            sample_size=SIDE,
            in_channels=1,
            out_channels=1,
            block_out_channels=(1,),
            num_class_embeds=len(means) + 1,
            class_embed_type=None,
            time_embedding_type="positional",
        )
        self.dtype = torch.float64

    def posterior_means(self, x, sigma):
        """`E[x given x_sigma]` of each class and, last, of their mixture, shape `(N, K + 1, C, H, W)`."""
        shrink = SPREAD**2 / (SPREAD**2 + sigma**2)
        by_class = self.means + shrink.unsqueeze(1) * (x.unsqueeze(1) - self.means)
        log_p = -(x.unsqueeze(1) - self.means).square().flatten(2).sum(2)
        log_p = log_p / (2 * (SPREAD**2 + sigma**2)).view(-1, 1)
        mixture = torch.einsum("nk,nkchw->nchw", log_p.softmax(1), by_class)
        return torch.cat([by_class, mixture.unsqueeze(1)], dim=1)

    def forward(self, sample, timestep, class_labels, return_dict):
        sigma = torch.exp(4 * timestep).view(-1, 1, 1, 1)
        x = sample * (sigma**2 + 0.25).sqrt()
        h = self.posterior_means(x, sigma)[torch.arange(len(x)), class_labels]
        c_skip, c_out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25).sqrt()
        return ((h - c_skip * x) / c_out,)


class UnconditionalMixtureNetwork(nn.Module):
    """The same mixture without classes, as it answers in the coordinates of another scheduler.

    `told(sample, time)` returns the `x_sigma` and `sigma` that are meant, `answer(x_sigma, sigma, h)` the output.
    """

    def __init__(self, means, told, answer):
        super().__init__()
        self.mixture, self.told, self.answer = GaussianMixtureNetwork(means), told, answer
        self.class_embedding = None
        self.config = SimpleNamespace(**{**vars(self.mixture.config), "num_class_embeds": None})
        self.dtype = torch.float64

    def forward(self, sample, timestep, return_dict):
        x, sigma = self.told(sample, timestep.double().view(-1, 1, 1, 1))
        return (self.answer(x, sigma, self.mixture.posterior_means(x, sigma)[:, -1]),)


def mixture_images(denoiser, labels, tau, seed=0):
    """Draws of the classes in pixel units, with noise of standard deviation tau (model units)."""
    generator = torch.Generator().manual_seed(seed)
    x = denoiser.unet.means.detach()[labels]
    eps = torch.randn(2, *x.shape, generator=generator, dtype=torch.float64)
    return (x + SPREAD * eps[0] + tau * eps[1] + 1) / 2

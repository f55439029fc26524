"""The preconditionings of Karras et al. 2022 (arXiv:2206.00364, Table 1) other than EDM's own, as schedulers.

They define how a network is called at a noise level `sigma` (VE coordinates, model units), with the same methods as
diffusers' `EDMEulerScheduler`, and say nothing about how to sample: `D = c_skip * x + c_out * F(c_in * x, c_noise)`.
`sigma` broadcasts against the images; for `precondition_noise` it has one value per image.
"""

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config


class VPPrecondScheduler(SchedulerMixin, ConfigMixin):
    """Preconditioning of variance-preserving networks in continuous time (`VPPrecond`), which predict the noise.

    Args:
        sigma_min: Smallest noise level. The default is `sigma(1e-5)` in float32 arithmetic.
        sigma_max: Largest noise level, `sigma(1)`.
        beta_d: Slope of the noise rate `beta(t)`: `sigma(t)^2 = exp(beta_d t^2 / 2 + beta_min t) - 1`.
        beta_min: Noise rate at t = 0.
        num_train_timesteps: The network takes `t` scaled to run from 0 to this minus 1.
    """

    @register_to_config
    def __init__(
        self,
        sigma_min: float = 0.0009765625,
        sigma_max: float = 152.16697692871094,
        beta_d: float = 19.9,
        beta_min: float = 0.1,
        num_train_timesteps: int = 1000,
    ):
        pass

    def precondition_inputs(self, sample: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """`c_in * x`."""
        return sample / (sigma**2 + 1).sqrt()

    def precondition_noise(self, sigma: torch.Tensor) -> torch.Tensor:
        """`c_noise`: the time at which the noise is `sigma`."""
        beta_d, beta_min = self.config.beta_d, self.config.beta_min
        t = ((beta_min**2 + 2 * beta_d * (1 + sigma**2).log()).sqrt() - beta_min) / beta_d
        return (self.config.num_train_timesteps - 1) * t

    def precondition_outputs(
        self, sample: torch.Tensor, model_output: torch.Tensor, sigma: torch.Tensor
    ) -> torch.Tensor:
        """`D = x - sigma * F`."""
        return sample - sigma * model_output


class VEPrecondScheduler(SchedulerMixin, ConfigMixin):
    """Preconditioning of variance-exploding networks (`VEPrecond`), which predict minus the noise.

    Args:
        sigma_min: Smallest noise level.
        sigma_max: Largest noise level.
    """

    @register_to_config
    def __init__(self, sigma_min: float = 0.02, sigma_max: float = 100.0):
        pass

    def precondition_inputs(self, sample: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """`c_in * x`, with `c_in = 1`."""
        return sample

    def precondition_noise(self, sigma: torch.Tensor) -> torch.Tensor:
        """`c_noise = ln(sigma / 2)`."""
        return (sigma / 2).log()

    def precondition_outputs(
        self, sample: torch.Tensor, model_output: torch.Tensor, sigma: torch.Tensor
    ) -> torch.Tensor:
        """`D = x + sigma * F`."""
        return sample + sigma * model_output


class IDDPMPrecondScheduler(SchedulerMixin, ConfigMixin):
    """Preconditioning of networks in discrete time (`iDDPMPrecond`), which predict the noise.

    The network is given the nearest trained noise level.

    Args:
        sigmas: The M + 1 trained noise levels `u`, descending; the last one is 0. For `u[j]`, the network takes
            `M - 1 - j`.
        sigma_min: Smallest noise level, `u[M - 1]`.
        sigma_max: Largest noise level, `u[0]`.
    """

    @register_to_config
    def __init__(self, sigmas: list[float], sigma_min: float, sigma_max: float):
        self.sigmas = torch.tensor(sigmas)

    def precondition_inputs(self, sample: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """`c_in * x`."""
        return sample / (sigma**2 + 1).sqrt()

    def precondition_noise(self, sigma: torch.Tensor) -> torch.Tensor:
        """`c_noise`: the number of the nearest trained level, shape `(N,)`."""
        self.sigmas = self.sigmas.to(sigma.device)
        nearest = (self.sigmas - sigma.reshape(-1, 1)).abs().argmin(dim=1)
        return (len(self.sigmas) - 2 - nearest).to(sigma.dtype)

    def precondition_outputs(
        self, sample: torch.Tensor, model_output: torch.Tensor, sigma: torch.Tensor
    ) -> torch.Tensor:
        """`D = x - sigma * F`."""
        return sample - sigma * model_output

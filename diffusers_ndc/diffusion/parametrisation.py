"""Parametrisations: from `(x_sigma, sigma)` to the network's input, and from its output to the clean image `x0`.

Coordinates are variance-exploding (`x_sigma = x + sigma * eps`), units are the model's. A parametrisation reads only
the noise levels of a scheduler. What belongs to sampling (spacing of timesteps, Karras sigmas, clipping of the sample)
has no part in it.
"""

import hashlib
import math
from collections.abc import Collection
from typing import Any

import torch
from diffusers import CMStochasticIterativeScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin


class Parametrisation:
    """What a family of schedulers says about a network, whichever network it is.

    Args:
        scheduler: The scheduler.

    Attributes:
        sigma_min, sigma_max: Smallest and largest noise level that the network was trained for, both finite.
        step_sigmas: Noise levels of the training steps if the network knows whole steps only, else `None`.
        settings: What a record states about the scheduler: its class, and the settings that a network was trained
            with, as plain values.
    """

    trained_settings: tuple[str, ...] = ()
    """Names of the scheduler's settings that are of the network, not of sampling."""

    sigma_min: float
    sigma_max: float
    step_sigmas: torch.Tensor | None = None

    def __init__(self, scheduler: SchedulerMixin):
        self.scheduler = scheduler
        values = {name: plain(scheduler.config[name]) for name in self.trained_settings if name in scheduler.config}
        self.settings = {"scheduler": type(scheduler).__name__, **values}

    def network_input(self, x_sigma: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """What the network sees of `x_sigma`; `sigma` broadcasts against it."""
        raise NotImplementedError

    def network_time(self, sigma: torch.Tensor) -> torch.Tensor:
        """The time that the network is told, one for each noise level of shape `(N,)`."""
        raise NotImplementedError

    def denoised(self, x_sigma: torch.Tensor, sigma: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """The clean image `x0` that follows from the network's output; `sigma` broadcasts against it."""
        raise NotImplementedError

    def nearest_sigma(self, sigma: float) -> float:
        """The noise level nearest to `sigma`, in `log sigma`, that the network knows exactly."""
        if self.step_sigmas is None:
            return sigma
        nearest = (self.step_sigmas.log() - math.log(sigma)).abs().argmin()
        return self.step_sigmas[nearest].item()


class VariancePreserving(Parametrisation):
    """Schedulers with `alphas_cumprod` (DDPM, DDIM, PNDM, DPM-Solver, Euler, ...) in VE coordinates.

    With `a = 1 / (1 + sigma^2)` the network sees `sqrt(a) * x_sigma` and a fractional timestep, found by interpolating
    `log sigma` over the training table, as k-diffusion and `EulerDiscreteScheduler` do. A schedule with zero terminal
    SNR (Lin et al. 2023, arXiv:2305.08891) ends in pure noise; the step before it is its largest noise level here.

    Args:
        scheduler: The scheduler.
        name: Name of the scheduler's argument, for messages.
        whole_steps: Whether the network knows whole timesteps only. It is then given the nearest one, and
            `step_sigmas` has the noise levels of the steps, the only ones that such a network can be given exactly.

    Raises:
        ValueError: The scheduler's prediction type is not supported, or its timesteps have no known noise level.
    """

    prediction_types = ("epsilon", "v_prediction", "sample")
    trained_settings = (
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "rescale_betas_zero_snr",
        "prediction_type",
    )

    def __init__(self, scheduler: SchedulerMixin, name: str = "scheduler", whole_steps: bool = False):
        super().__init__(scheduler)
        config = scheduler.config
        self.prediction_type = config.get("prediction_type", "epsilon")
        if self.prediction_type not in self.prediction_types:
            raise ValueError(
                f"`{name}` must have a prediction_type of {self.prediction_types}, got {type(scheduler).__name__} "
                f"with prediction_type={self.prediction_type!r}."
            )
        for key, supported in (("use_flow_sigmas", False), ("timestep_type", "discrete")):
            value = config.get(key, supported)
            if value != supported:
                raise ValueError(
                    f"`{name}` must have {key}={supported!r}, got {type(scheduler).__name__} with {key}={value!r}, "
                    "for which the noise level of a timestep is unknown."
                )
        alphas_cumprod = scheduler.alphas_cumprod.detach().double().cpu()
        if config.get("rescale_betas_zero_snr", False):  # the last entry is 0, or 2^-24 instead
            alphas_cumprod = alphas_cumprod[:-1]
        sigmas = ((1 - alphas_cumprod) / alphas_cumprod).sqrt()
        sigmas = sigmas[sigmas.isfinite()]
        self.sigma_min, self.sigma_max = sigmas[0].item(), sigmas[-1].item()
        self.log_sigmas = sigmas.log().float()
        self.step_sigmas = sigmas if whole_steps else None

    def network_input(self, x_sigma: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return x_sigma / (1 + sigma**2).sqrt()

    def network_time(self, sigma: torch.Tensor) -> torch.Tensor:
        self.log_sigmas = self.log_sigmas.to(sigma.device)
        log_sigma = sigma.float().log().contiguous()
        high = torch.searchsorted(self.log_sigmas, log_sigma).clamp(1, len(self.log_sigmas) - 1)
        below, above = self.log_sigmas[high - 1], self.log_sigmas[high]
        time = high - 1 + ((log_sigma - below) / (above - below)).clamp(0, 1)
        if self.step_sigmas is not None:
            return time.round().long()
        return time

    def denoised(self, x_sigma: torch.Tensor, sigma: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        if self.prediction_type == "epsilon":
            return x_sigma - sigma * output
        if self.prediction_type == "v_prediction":  # v = sqrt(a) * eps - sqrt(1 - a) * x
            return (x_sigma - sigma * (1 + sigma**2).sqrt() * output) / (1 + sigma**2)
        return output


class EDM(Parametrisation):
    """Schedulers with EDM preconditioning (Karras et al. 2022, arXiv:2206.00364, Table 1).

    The preconditioning is computed by the scheduler's own functions.

    Args:
        scheduler: The scheduler.
    """

    trained_settings = ("sigma_data", "prediction_type", "beta_d", "beta_min", "num_train_timesteps", "sigmas")

    def __init__(self, scheduler: SchedulerMixin):
        super().__init__(scheduler)
        self.sigma_min, self.sigma_max = scheduler.config.sigma_min, scheduler.config.sigma_max

    def network_input(self, x_sigma: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return self.scheduler.precondition_inputs(x_sigma, sigma)

    def network_time(self, sigma: torch.Tensor) -> torch.Tensor:
        return self.scheduler.precondition_noise(sigma)

    def denoised(self, x_sigma: torch.Tensor, sigma: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return self.scheduler.precondition_outputs(x_sigma, output, sigma)


class Consistency(Parametrisation):
    """Consistency models (Song et al. 2023, arXiv:2303.01469, Appendix C): `CMStochasticIterativeScheduler`.

    Their `h` is the end of the probability-flow path through `x_sigma`, instead of the mean of the clean image. It is
    a sharp one-step denoiser, whose losses do not estimate a likelihood. Certificates hold all the same, since they
    hold for any base classifier.

    Args:
        scheduler: The scheduler.
    """

    trained_settings = ("sigma_data", "sigma_min")

    def __init__(self, scheduler: CMStochasticIterativeScheduler):
        super().__init__(scheduler)
        self.sigma_min, self.sigma_max = scheduler.config.sigma_min, scheduler.config.sigma_max

    def network_input(self, x_sigma: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return x_sigma / (sigma**2 + self.scheduler.config.sigma_data**2).sqrt()

    def network_time(self, sigma: torch.Tensor) -> torch.Tensor:
        return 250 * sigma.log()  # the scheduler's `sigma_to_t`, which only takes numpy arrays

    def denoised(self, x_sigma: torch.Tensor, sigma: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        c_skip, c_out = self.scheduler.get_scalings_for_boundary_condition(sigma)
        return c_skip * x_sigma + c_out * output


class FlowMatching(Parametrisation):
    """Rectified flows (Lipman et al. 2023, arXiv:2210.02747; Esser et al. 2024, arXiv:2403.03206).

    The network sees `x_s = (1 - s) * x + s * eps = (1 - s) * x_sigma` with `s = sigma / (1 + sigma)`, at the time
    `s * num_train_timesteps`, and predicts the velocity `eps - x`. The scheduler's `shift` determines which `s` occur
    in training and sampling, not what `s` means: it moves the range of noise levels, where step k of N has
    `sigma = shift * k / (N - k)`.

    Args:
        scheduler: The scheduler.
        name: Name of the scheduler's argument, for messages.

    Raises:
        ValueError: The scheduler's time runs from noise to image (`invert_sigmas`).
    """

    trained_settings = ("num_train_timesteps",)

    def __init__(self, scheduler: FlowMatchEulerDiscreteScheduler, name: str = "scheduler"):
        super().__init__(scheduler)
        config = scheduler.config
        if config.invert_sigmas:
            raise ValueError(
                f"`{name}` must have invert_sigmas=False, got {type(scheduler).__name__} with invert_sigmas=True, "
                "where time runs from noise to image."
            )
        self.num_steps = config.num_train_timesteps
        shift = 1.0 if config.use_dynamic_shifting else config.shift  # a dynamic shift depends on the sampled image
        self.sigma_min, self.sigma_max = shift / (self.num_steps - 1), shift * (self.num_steps - 1)

    def network_input(self, x_sigma: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return x_sigma / (1 + sigma)

    def network_time(self, sigma: torch.Tensor) -> torch.Tensor:
        return sigma / (1 + sigma) * self.num_steps

    def denoised(self, x_sigma: torch.Tensor, sigma: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return (x_sigma - sigma * output) / (1 + sigma)  # x_s - s * (eps - x)


def plain(value: Any) -> Any:
    """A setting as a plain value: of a sequence of numbers, such as `trained_betas`, the hash."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return hashlib.sha256(repr([float(number) for number in value]).encode()).hexdigest()[:32]


def parametrisation(
    scheduler: SchedulerMixin, table_sizes: Collection[int] = (), name: str = "scheduler"
) -> Parametrisation:
    """The parametrisation that belongs to a scheduler.

    Args:
        scheduler: The scheduler.
        table_sizes: For each network with a learned time embedding, the number of timesteps in its table. If there is
            one, the parametrisation is of whole timesteps.
        name: Name of the scheduler's argument, for messages.

    Raises:
        ValueError: The scheduler has no known noise level, or other timesteps than a network's table.
    """
    kind = type(scheduler).__name__
    # Classes of schedulers share no base class that says which family they belong to: their attributes do.
    num_timesteps = len(getattr(scheduler, "alphas_cumprod", ()))
    for table_size in table_sizes:
        if table_size != num_timesteps:
            raise ValueError(
                f"`{name}` must have {table_size} whole timesteps (`alphas_cumprod`), as many as the network with "
                f"time_embedding_type='learned' and num_train_timesteps={table_size}, got {kind} with {num_timesteps}."
            )
    if table_sizes:
        return VariancePreserving(scheduler, name, whole_steps=True)
    if hasattr(scheduler, "precondition_outputs"):
        return EDM(scheduler)
    if isinstance(scheduler, CMStochasticIterativeScheduler):
        return Consistency(scheduler)
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return FlowMatching(scheduler, name)
    if hasattr(scheduler, "alphas_cumprod"):
        return VariancePreserving(scheduler, name)
    raise ValueError(
        f"`{name}` must have a known noise level: a scheduler with `alphas_cumprod` (DDPM, DDIM, PNDM, DPM-Solver, "
        "Euler, ...), an EDM scheduler (`EDMEulerScheduler`, `EDMDPMSolverMultistepScheduler`), "
        f"`CMStochasticIterativeScheduler` or `FlowMatchEulerDiscreteScheduler`, got {kind}."
    )


def two_parametrisations(
    scheduler: SchedulerMixin,
    unconditional_scheduler: SchedulerMixin | None,
    table_sizes: tuple[int | None, int | None],
) -> tuple[Parametrisation, Parametrisation]:
    """The parametrisations of a class-conditional and an unconditional network.

    Args:
        scheduler: The scheduler of the class-conditional network.
        unconditional_scheduler: That of the unconditional one. `None`: they share one, and its whole timesteps if
            either of them has a table.
        table_sizes: Number of timesteps in the table of each, `None` without a learned time embedding.

    Raises:
        ValueError: A scheduler has no known noise level, or other timesteps than a network's table.
    """
    own, other = ([] if size is None else [size] for size in table_sizes)
    if unconditional_scheduler is None:
        shared = parametrisation(scheduler, own + other)
        return shared, shared
    second = parametrisation(unconditional_scheduler, other, "unconditional_scheduler")
    return parametrisation(scheduler, own), second

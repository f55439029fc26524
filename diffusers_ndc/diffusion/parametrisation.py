"""The coordinates of a scheduler: how `(x_sigma, sigma)` becomes network input and network output becomes `x0`.

Coordinates are variance-exploding (`x_sigma = x + sigma * eps`) and units are the model's. Each class has the smallest
and largest noise level that the network was trained for, `sigma_min` and `sigma_max`, both finite, and

    network_input(x_sigma, sigma) -> input    network_time(sigma) -> time    denoised(x_sigma, sigma, output) -> x0

Of the scheduler its noise levels alone are read. What belongs to sampling (spacing of timesteps, Karras sigmas,
clipping of the sample) has no part in them.
"""

import torch
from diffusers import CMStochasticIterativeScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin


class VariancePreserving:
    """Schedulers with `alphas_cumprod` (DDPM, DDIM, PNDM, DPM-Solver, Euler, ...) in VE coordinates.

    With `a = 1 / (1 + sigma^2)` the network sees `sqrt(a) * x_sigma` and a fractional timestep, found by interpolating
    `log sigma` over the training table, as k-diffusion and `EulerDiscreteScheduler` do. A schedule with zero terminal
    SNR (Lin et al. 2023, arXiv:2305.08891) ends in pure noise; the step before it is its largest noise level here.

    Args:
        scheduler: The scheduler.
        whole_steps: The network knows whole timesteps only: it is told the nearest one. `step_sigmas` then has the
            noise levels of the steps, the only ones that it can be told truthfully; else it is `None`.
    """

    prediction_types = ("epsilon", "v_prediction", "sample")

    def __init__(self, scheduler: SchedulerMixin, whole_steps: bool = False):
        config = scheduler.config
        self.prediction_type = config.get("prediction_type", "epsilon")
        if self.prediction_type not in self.prediction_types:
            raise ValueError(
                f"`scheduler` ({type(scheduler).__name__}) has prediction_type={self.prediction_type!r}; "
                f"accepted are {self.prediction_types}."
            )
        for key, usual in (("use_flow_sigmas", False), ("timestep_type", "discrete")):
            if config.get(key, usual) != usual:
                raise ValueError(
                    f"`scheduler` ({type(scheduler).__name__}) has {key}={config[key]!r}, for which the noise level "
                    f"of a timestep is not known here; accepted is {usual!r}."
                )
        alphas_cumprod = scheduler.alphas_cumprod.detach().double().cpu()
        if config.get("rescale_betas_zero_snr", False):  # its last entry is 0, or 2^-24 in place of it
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
        return time if self.step_sigmas is None else time.round().long()

    def denoised(self, x_sigma: torch.Tensor, sigma: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        if self.prediction_type == "epsilon":
            return x_sigma - sigma * output
        if self.prediction_type == "v_prediction":
            return (x_sigma - sigma * (1 + sigma**2).sqrt() * output) / (1 + sigma**2)
        return output


class EDM:
    """Schedulers with EDM preconditioning (Karras et al. 2022, arXiv:2206.00364, Table 1), by their own functions."""

    step_sigmas = None

    def __init__(self, scheduler: SchedulerMixin):
        self.scheduler = scheduler
        self.sigma_min, self.sigma_max = scheduler.config.sigma_min, scheduler.config.sigma_max

    def network_input(self, x_sigma: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return self.scheduler.precondition_inputs(x_sigma, sigma)

    def network_time(self, sigma: torch.Tensor) -> torch.Tensor:
        return self.scheduler.precondition_noise(sigma)

    def denoised(self, x_sigma: torch.Tensor, sigma: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return self.scheduler.precondition_outputs(x_sigma, output, sigma)


class Consistency:
    """Consistency models (Song et al. 2023, arXiv:2303.01469, Appendix C): `CMStochasticIterativeScheduler`.

    Their `h` is where the probability-flow path through `x_sigma` ends, and not the mean of the clean image: a sharp
    one-step denoiser, whose losses estimate no likelihood. A certificate is about whatever classifier comes out, and
    so holds all the same.
    """

    step_sigmas = None

    def __init__(self, scheduler: CMStochasticIterativeScheduler):
        self.scheduler = scheduler
        self.sigma_min, self.sigma_max = scheduler.config.sigma_min, scheduler.config.sigma_max

    def network_input(self, x_sigma: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return x_sigma / (sigma**2 + self.scheduler.config.sigma_data**2).sqrt()

    def network_time(self, sigma: torch.Tensor) -> torch.Tensor:
        return 250 * sigma.log()  # `sigma_to_t` of the scheduler, which is for numpy alone

    def denoised(self, x_sigma: torch.Tensor, sigma: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        c_skip, c_out = self.scheduler.get_scalings_for_boundary_condition(sigma)
        return c_skip * x_sigma + c_out * output


class FlowMatching:
    """Rectified flows (Lipman et al. 2023, arXiv:2210.02747; Esser et al. 2024, arXiv:2403.03206).

    The network sees `x_s = (1 - s) * x + s * eps = (1 - s) * x_sigma` with `s = sigma / (1 + sigma)`, at the time
    `s * num_train_timesteps`, and predicts the velocity `eps - x`. The scheduler's `shift` says at which `s` training
    and sampling dwell, not what `s` means: it moves the range of noise levels, where step k of N has
    `sigma = shift * k / (N - k)`.
    """

    step_sigmas = None

    def __init__(self, scheduler: FlowMatchEulerDiscreteScheduler):
        config = scheduler.config
        if config.invert_sigmas:
            raise ValueError(
                f"`scheduler` ({type(scheduler).__name__}) has invert_sigmas=True, where time runs from noise to "
                "image; accepted is False."
            )
        self.num_steps = config.num_train_timesteps
        shift = 1.0 if config.use_dynamic_shifting else config.shift  # a dynamic one depends on the sampled image
        self.sigma_min, self.sigma_max = shift / (self.num_steps - 1), shift * (self.num_steps - 1)

    def network_input(self, x_sigma: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return x_sigma / (1 + sigma)

    def network_time(self, sigma: torch.Tensor) -> torch.Tensor:
        return sigma / (1 + sigma) * self.num_steps

    def denoised(self, x_sigma: torch.Tensor, sigma: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return (x_sigma - sigma * output) / (1 + sigma)


Parametrisation = VariancePreserving | EDM | Consistency | FlowMatching


def parametrisation(scheduler: SchedulerMixin, embedded_steps: int | None = None) -> Parametrisation:
    """The coordinates of a scheduler.

    Args:
        scheduler: The scheduler.
        embedded_steps: Size of the network's table of timesteps, where it has a learned one.

    Raises:
        ValueError: The scheduler has no known noise level, or not these timesteps.
    """
    name = type(scheduler).__name__
    if embedded_steps is not None:
        table = getattr(scheduler, "alphas_cumprod", ())
        if len(table) != embedded_steps:
            raise ValueError(
                f"`scheduler` ({name}) has {len(table)} whole timesteps (`alphas_cumprod`), and the network "
                f"time_embedding_type='learned' with num_train_timesteps={embedded_steps}; accepted is a scheduler "
                "with as many."
            )
        return VariancePreserving(scheduler, whole_steps=True)
    if hasattr(scheduler, "precondition_outputs"):
        return EDM(scheduler)
    if isinstance(scheduler, CMStochasticIterativeScheduler):
        return Consistency(scheduler)
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return FlowMatching(scheduler)
    if hasattr(scheduler, "alphas_cumprod"):
        return VariancePreserving(scheduler)
    raise ValueError(
        f"`scheduler` is a {name}, which has no known noise level; accepted are schedulers with `alphas_cumprod` "
        "(DDPM, DDIM, PNDM, DPM-Solver, Euler, ...), EDM schedulers (`EDMEulerScheduler`, "
        "`EDMDPMSolverMultistepScheduler`), `CMStochasticIterativeScheduler` and `FlowMatchEulerDiscreteScheduler`."
    )

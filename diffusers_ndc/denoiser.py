"""Any class-conditional diffusers network as one denoiser `h(x_sigma, sigma, y) ~ E[x | x_sigma, y]`.

Everything after this file is free of schedulers, prediction types and network layouts. Coordinates are
variance-exploding (`x_sigma = x + sigma * eps`) and units are the model's: images in [-1, 1], `sigma` on that scale.
"""

from contextlib import AbstractContextManager

import torch
from torch import nn


class VariancePreserving:
    """Schedulers with `alphas_cumprod` (DDPM, DDIM, PNDM, DPM-Solver, Euler, ...) in VE coordinates.

    With `a = 1 / (1 + sigma^2)` the network sees `sqrt(a) * x_sigma` and a fractional timestep, found by interpolating
    `log sigma` over the training table, as k-diffusion and `EulerDiscreteScheduler` do.
    """

    prediction_types = ("epsilon", "v_prediction", "sample")

    def __init__(self, scheduler):
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
        sigmas = ((1 - alphas_cumprod) / alphas_cumprod).sqrt()
        sigmas = sigmas[sigmas.isfinite()]  # a schedule with zero terminal SNR ends in sigma = inf
        self.sigma_min, self.sigma_max = sigmas[0].item(), sigmas[-1].item()
        self.log_sigmas = sigmas.log().float()

    def network_input(self, x_sigma: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return x_sigma / (1 + sigma**2).sqrt()

    def network_time(self, sigma: torch.Tensor) -> torch.Tensor:
        self.log_sigmas = self.log_sigmas.to(sigma.device)
        log_sigma = sigma.float().log().contiguous()
        high = torch.searchsorted(self.log_sigmas, log_sigma).clamp(1, len(self.log_sigmas) - 1)
        below, above = self.log_sigmas[high - 1], self.log_sigmas[high]
        return high - 1 + ((log_sigma - below) / (above - below)).clamp(0, 1)

    def denoised(self, x_sigma: torch.Tensor, sigma: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        if self.prediction_type == "epsilon":
            return x_sigma - sigma * output
        if self.prediction_type == "v_prediction":
            return (x_sigma - sigma * (1 + sigma**2).sqrt() * output) / (1 + sigma**2)
        return output


class EDM:
    """Schedulers with EDM preconditioning (Karras et al. 2022, arXiv:2206.00364, Table 1), by their own functions."""

    def __init__(self, scheduler):
        self.scheduler = scheduler
        self.sigma_min, self.sigma_max = scheduler.config.sigma_min, scheduler.config.sigma_max

    def network_input(self, x_sigma: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return self.scheduler.precondition_inputs(x_sigma, sigma)

    def network_time(self, sigma: torch.Tensor) -> torch.Tensor:
        return self.scheduler.precondition_noise(sigma)

    def denoised(self, x_sigma: torch.Tensor, sigma: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return self.scheduler.precondition_outputs(x_sigma, output, sigma)


def parametrisation(scheduler) -> VariancePreserving | EDM:
    """The coordinates of a scheduler: how `(x_sigma, sigma)` becomes network input and network output becomes `x0`."""
    if hasattr(scheduler, "precondition_outputs"):
        return EDM(scheduler)
    if hasattr(scheduler, "alphas_cumprod"):
        return VariancePreserving(scheduler)
    raise ValueError(
        f"`scheduler` is a {type(scheduler).__name__}, which has no known noise level; accepted are schedulers with "
        "`alphas_cumprod` (DDPM, DDIM, PNDM, DPM-Solver, Euler, ...) and EDM schedulers (`EDMEulerScheduler`, "
        "`EDMDPMSolverMultistepScheduler`)."
    )


class Denoiser(nn.Module):
    """A class-conditional network and its scheduler as `h(x_sigma, sigma, y)`, the mean of the clean image.

    Args:
        unet: A `UNet2DModel` with a class embedding (`num_class_embeds`, or `class_embed_type="timestep"`).
        scheduler: One with `alphas_cumprod` and prediction type epsilon, v_prediction or sample, or an EDM scheduler.
            It is only read, never changed.
        num_classes: Number of classes. Needed only where `unet.config.num_class_embeds` does not say it.
        null_class: Index of the embedding row that training with label dropout reserved for "no class"; it must be
            the last one. `None` if there is none.
        unconditional_unet: A second network, without classes, that serves as the unconditional denoiser.

    The unconditional denoiser is, in this order, the `unconditional_unet`, the `null_class`, or the mean of `h` over
    the classes under a uniform prior (one network evaluation for each class). `null_source` says which one it is.

    Raises:
        ValueError: The network has no class embedding, more outputs than inputs, weights that are not finite, or
            disagrees with `num_classes` or `null_class`; the scheduler has no known noise level.
    """

    def __init__(
        self,
        unet: nn.Module,
        scheduler,
        num_classes: int | None = None,
        null_class: int | None = None,
        unconditional_unet: nn.Module | None = None,
    ):
        super().__init__()
        self.scheduler = scheduler
        self.parametrisation = parametrisation(scheduler)
        self.num_classes = check_class_embedding(unet, num_classes, null_class)
        check_network("unet", unet)
        if unconditional_unet is not None:
            check_network("unconditional_unet", unconditional_unet)
            if unconditional_unet.class_embedding is not None:
                raise ValueError("`unconditional_unet` has a class embedding; accepted is a network without classes.")
        self.unet = unet
        self.null_class = null_class
        self.unconditional_unet = unconditional_unet

    @property
    def null_source(self) -> str:
        """Where the unconditional denoiser comes from: `unconditional_unet`, `null_class` or `class_mean`."""
        if self.unconditional_unet is not None:
            return "unconditional_unet"
        return "class_mean" if self.null_class is None else "null_class"

    @property
    def null_evaluations(self) -> int:
        """Network evaluations that one unconditional denoising costs."""
        return self.num_classes if self.null_source == "class_mean" else 1

    @property
    def dtype(self) -> str:
        """What the network computes in: its own dtype, or that of autocast where it is on."""
        return computing_dtype(self.unet)

    def inference(self) -> AbstractContextManager:
        """Context for evaluations without gradients."""
        return inference(self)

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Smallest and largest noise level (model units) that the network was trained for."""
        return self.parametrisation.sigma_min, self.parametrisation.sigma_max

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of the network's images, `None` where it does not fix them."""
        size = self.unet.config.sample_size
        return (size, size) if isinstance(size, int) else size and tuple(size)

    def check_images(self, images: torch.Tensor) -> None:
        """Refuse a batch that the network cannot take.

        Raises:
            TypeError: `images` is not a floating-point tensor.
            ValueError: It has not the shape `(N, C, H, W)` with N at least 1 and the network's channels and size.
        """
        if not isinstance(images, torch.Tensor) or not images.is_floating_point():
            given = images.dtype if isinstance(images, torch.Tensor) else type(images).__name__
            raise TypeError(f"`images` is {given}; accepted is a floating-point tensor.")
        config, size = self.unet.config, self.image_size
        multiple = 2 ** (len(config.block_out_channels) - 1)
        if (
            images.ndim != 4
            or len(images) == 0
            or images.shape[1] != config.in_channels
            or (tuple(images.shape[2:]) != size if size else any(side % multiple for side in images.shape[2:]))
        ):
            sides = " x ".join(map(str, size)) if size else f"sides that are multiples of {multiple}"
            raise ValueError(
                f"`images` has the shape {tuple(images.shape)}; accepted is (N, {config.in_channels}, height, width) "
                f"with at least one image and {sides} pixels."
            )

    def forward(
        self, x_sigma: torch.Tensor, sigma: torch.Tensor | float, class_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Estimate `E[x | x_sigma, y]`.

        Args:
            x_sigma: Noisy images `x + sigma * eps`, model units, shape `(N, C, H, W)`, float32 or float64.
            sigma: Noise level, model units, a number or shape `(N,)`.
            class_labels: Class indices, shape `(N,)`, or `None` for the unconditional denoiser.

        Returns:
            Denoised images of the shape and dtype of `x_sigma`, whatever the dtype of the network.

        Raises:
            ValueError: `class_labels` has another shape, or a label that the network does not have.
        """
        if class_labels is not None:
            rows = self.unet.config.num_class_embeds or self.num_classes
            if class_labels.shape != x_sigma.shape[:1] or not (0 <= class_labels.min() and class_labels.max() < rows):
                raise ValueError(
                    f"`class_labels` is {class_labels.tolist()} for {len(x_sigma)} images; accepted is one label from "
                    f"0 to {rows - 1} for each."
                )
        return self.denoise(x_sigma, sigma, class_labels)

    def denoise(
        self, x_sigma: torch.Tensor, sigma: torch.Tensor | float, class_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`forward` without its check of the labels, which would make an accelerator wait in every batch."""
        sigma = torch.as_tensor(sigma, dtype=x_sigma.dtype, device=x_sigma.device).expand(len(x_sigma))
        if class_labels is not None:
            return self._run(self.unet, x_sigma, sigma, class_labels)
        if self.unconditional_unet is not None:
            return self._run(self.unconditional_unet, x_sigma, sigma, None)
        rows = range(self.num_classes) if self.null_class is None else (self.null_class,)
        labels = torch.empty(len(x_sigma), dtype=torch.long, device=x_sigma.device)
        return sum(self._run(self.unet, x_sigma, sigma, labels.fill_(row)) for row in rows) / len(rows)

    def _run(self, network, x_sigma, sigma, class_labels):
        per_image = sigma.view(-1, *[1] * (x_sigma.ndim - 1))
        dtype = next(network.parameters()).dtype  # `network.dtype` walks through all modules, in every batch
        x_in = self.parametrisation.network_input(x_sigma, per_image).to(dtype)
        time = self.parametrisation.network_time(sigma)
        output = network(x_in, time, class_labels=class_labels, return_dict=False)[0]
        return self.parametrisation.denoised(x_sigma, per_image, output.to(x_sigma.dtype))


def computing_dtype(network: nn.Module) -> str:
    """What a network of diffusers or transformers computes in: its own dtype, or that of autocast where it is on."""
    kind = network.device.type
    if torch.is_autocast_enabled(kind):
        return f"autocast {torch.get_autocast_dtype(kind)}".replace("torch.", "")
    return str(network.dtype).removeprefix("torch.")


def inference(module: nn.Module) -> AbstractContextManager:
    """Context for evaluations without gradients: inference mode, the cheaper one, where weights stay in place.

    Hooks of accelerate or diffusers that move weights, as offloading does, would leave weights that no gradient can
    ever pass again; for them it is `no_grad`.
    """
    moved = any(hasattr(part, "_hf_hook") or hasattr(part, "_diffusers_hook") for part in module.modules())
    return torch.no_grad() if moved else torch.inference_mode()


def check_network(name: str, network: nn.Module) -> None:
    """Refuse a network with weights that are not finite, or with an output of another shape than its input."""
    weights = [weight for weight in network.parameters() if not weight.is_meta]  # meta: offloaded, not here to read
    if weights and not torch.stack([weight.isfinite().all() for weight in weights]).all():
        raise ValueError(f"`{name}` has weights that are NaN or infinite; accepted are finite weights.")
    if network.config.out_channels != network.config.in_channels:
        raise ValueError(
            f"`{name}` has in_channels={network.config.in_channels} and out_channels={network.config.out_channels}; "
            "accepted are networks with as many outputs as inputs."
        )


def check_class_embedding(unet: nn.Module, num_classes: int | None, null_class: int | None) -> int:
    """Number of classes of a network, `num_classes` and `null_class` checked against its embedding.

    Raises:
        ValueError: There is no usable class embedding, or the numbers do not agree.
    """
    class_embed_type = unet.config.get("class_embed_type")
    if unet.class_embedding is None or class_embed_type == "identity":
        raise ValueError(
            f"`unet` has no class embedding (num_class_embeds={unet.config.num_class_embeds}, "
            f"class_embed_type={class_embed_type!r}); accepted is a class-conditional network that takes "
            "integer class labels."
        )
    if unet.config.time_embedding_type == "learned":
        raise ValueError(
            "`unet` has time_embedding_type='learned', which knows whole timesteps only; accepted are 'positional' "
            "and 'fourier'."
        )
    rows = unet.config.num_class_embeds
    if class_embed_type is not None:  # "timestep": labels are embedded by a function, not a table
        if num_classes is None or null_class is not None:
            raise ValueError(
                f"`unet` has class_embed_type={class_embed_type!r}: it needs `num_classes` (or an "
                f"`id2label`), given {num_classes}, and has no row for a `null_class`, given {null_class}."
            )
        return num_classes
    if null_class is not None and null_class != rows - 1:
        raise ValueError(
            f"`null_class` is {null_class}; accepted is the last of the {rows} embedding rows, {rows - 1}, or None."
        )
    expected = rows - (null_class is not None)
    if num_classes not in (None, expected):
        raise ValueError(
            f"`num_classes` (the size of `id2label`) is {num_classes}, but the network has {expected} classes "
            f"(num_class_embeds={rows}, null_class={null_class})."
        )
    return expected

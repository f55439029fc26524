"""Any class-conditional diffusers network as one denoiser `h(x_sigma, sigma, y) ~ E[x | x_sigma, y]`.

Everything after this file is free of schedulers, prediction types and network layouts. Coordinates are
variance-exploding (`x_sigma = x + sigma * eps`) and units are the model's: images in [-1, 1], `sigma` on that scale.
Of a latent diffusion model `x` is the latent, and `sigma` on its scale.
"""

import math
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKL, ModelMixin, SchedulerMixin
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ..common.checks import check_kind, check_number
from ..common.images import check_floating
from .conditioning import ClassLabels, NoClasses, PromptEmbeddings, has_classes, without_text
from .latents import LatentEncoder
from .parametrisation import parametrisation


if TYPE_CHECKING:
    from transformers import PreTrainedModel


SAME_NOISE = 1e-3
"""Largest relative difference from a training step's noise at which a network may be told that it is that step's."""


class Denoiser(nn.Module):
    """A class-conditional network and its scheduler as `h(x_sigma, sigma, y)`, the mean of the clean image.

    Args:
        unet: A `UNet2DModel`, or a `UNet2DConditionModel` without cross-attention, with a class embedding
            (`num_class_embeds`, or `class_embed_type="timestep"`). Where it has twice as many output channels as
            input channels, the second half (a learned variance) is left aside. Also a `DiTTransformer2DModel`, and a
            text-conditional `UNet2DConditionModel` with `prompt_embeddings`.
        scheduler: One with `alphas_cumprod` and prediction type epsilon, v_prediction or sample, an EDM scheduler,
            `CMStochasticIterativeScheduler` or `FlowMatchEulerDiscreteScheduler`. It is only read, never changed.
        num_classes: Number of classes. Needed only where `unet.config.num_class_embeds` does not say it. 0: a network
            without classes, which can denoise and not classify.
        null_class: Index of the embedding row that training with label dropout reserved for "no class"; it must be
            the last one. `None` if there is none (a DiT always has one).
        unconditional_unet: A second network, without classes, that serves as the unconditional denoiser.
        prompt_embeddings: `encoder_hidden_states` of the classes, shape `(K, tokens, channels)`, and of "no class" in
            a last row where `null_class` says so; see `embed_prompts`.
        vae: Autoencoder of a latent diffusion model: `encode` then takes images to its latents.

    The unconditional denoiser is, in this order, the `unconditional_unet`, the `null_class`, or the mean of `h` over
    the classes under a uniform prior (one network evaluation for each class). `null_source` says which one it is.

    A network with a learned time embedding (a table) knows the noise levels of whole training steps only. It is told
    the nearest step, and only images that carry that step's noise are accepted; `nearest_sigma` gives it.

    Raises:
        TypeError: An argument, such as the network or the `vae`, is of a class that is not supported.
        ValueError: The network has no class embedding, an output that is neither as deep as its input nor twice that,
            weights that are not finite, needs to be told more than a class, or disagrees with `num_classes` or
            `null_class`; the scheduler has no known noise level, or not the timesteps of the network.
    """

    def __init__(
        self,
        unet: ModelMixin,
        scheduler: SchedulerMixin,
        num_classes: int | None = None,
        null_class: int | None = None,
        unconditional_unet: ModelMixin | None = None,
        prompt_embeddings: torch.Tensor | None = None,
        vae: AutoencoderKL | None = None,
    ):
        super().__init__()
        for name, number in (("num_classes", num_classes), ("null_class", null_class)):
            if number is not None:
                check_kind(name, number, int)
        plain = uncompiled(unet)
        check_network("unet", plain)
        self.scheduler = scheduler
        self.conditioning: NoClasses | ClassLabels | PromptEmbeddings
        if num_classes == 0:
            if any(argument is not None for argument in (null_class, unconditional_unet, prompt_embeddings)):
                raise ValueError(
                    "`num_classes` is 0 beside `null_class`, `unconditional_unet` or `prompt_embeddings`; accepted is "
                    "a network alone."
                )
            self.conditioning, unconditional_unet = NoClasses(), unet
        elif prompt_embeddings is not None:
            self.conditioning = PromptEmbeddings(plain, prompt_embeddings, num_classes, null_class)
        else:
            self.conditioning = ClassLabels(plain, num_classes, null_class)
        self.encoder = None if vae is None else LatentEncoder(vae, unet.config.in_channels)
        if vae is not None:
            check_weights("vae", vae)
        tables = {embedded_steps(plain)}
        if unconditional_unet is not None:
            other = uncompiled(unconditional_unet)
            check_network("unconditional_unet", other)
            if has_classes("unconditional_unet", other):
                name = "unet` with num_classes=0" if unconditional_unet is unet else "unconditional_unet`"
                raise ValueError(f"`{name} has a class embedding; accepted is a network without classes.")
            self.unconditional_arguments = without_text("unconditional_unet", other)
            tables.add(embedded_steps(other))
        for table in tables - {None} or {None}:
            self.parametrisation = parametrisation(scheduler, table)
        self.unet = unet
        self.num_classes, self.null_class = self.conditioning.num_classes, self.conditioning.null_class
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

    def inference(self) -> torch.no_grad | torch.inference_mode:
        """Context for evaluations without gradients."""
        return inference(self)

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Smallest and largest noise level (model units) that the network was trained for."""
        return self.parametrisation.sigma_min, self.parametrisation.sigma_max

    def nearest_sigma(self, sigma: float) -> float:
        """The noise level (model units) nearest to `sigma` that the network can be told truthfully.

        That is `sigma` itself, unless the network has a learned time embedding: then it is a training step's.
        """
        steps = self.parametrisation.step_sigmas
        return sigma if steps is None else steps[(steps.log() - math.log(sigma)).abs().argmin()].item()

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of the images, in pixels; `None` where the network does not fix them."""
        size, factor = self.unet.config.sample_size, self._pixels_per_value
        return size and tuple(factor * side for side in ((size, size) if isinstance(size, int) else size))

    @property
    def image_channels(self) -> int:
        """Channels of the images."""
        return (self.unet if self.encoder is None else self.encoder.vae).config.in_channels

    @property
    def _pixels_per_value(self) -> int:
        return 1 if self.encoder is None else self.encoder.downscaling

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Images in [-1, 1] to the space of the diffusion: themselves, or their latents."""
        return images if self.encoder is None else self.encoder(images)

    def check_images(self, images: torch.Tensor) -> None:
        """Refuse a batch that the network cannot take.

        Raises:
            TypeError: `images` is not a floating-point tensor.
            ValueError: It has not the shape `(N, C, H, W)` with N at least 1 and the model's channels and size.
        """
        check_floating(images)
        size, channels = self.image_size, self.image_channels
        multiple = 1 if size else self._pixels_per_value * 2 ** (len(self.unet.config.block_out_channels) - 1)
        if (
            images.ndim != 4
            or not images.numel()
            or images.shape[1] != channels
            or (tuple(images.shape[2:]) != size if size else any(side % multiple for side in images.shape[2:]))
        ):
            sides = " x ".join(map(str, size)) if size else f"sides that are multiples of {multiple}"
            raise ValueError(
                f"`images` has the shape {tuple(images.shape)}; accepted is (N, {channels}, height, width) with at "
                f"least one image and {sides} pixels."
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
            TypeError: An argument is of another type.
            ValueError: An argument has another shape; `class_labels` a label that the network does not have; `sigma`
                is not above 0, or not the noise of a training step, where the network knows no other.
        """
        check_floating(x_sigma, "x_sigma")
        channels = self.unet.config.in_channels
        if x_sigma.ndim != 4 or not x_sigma.numel() or x_sigma.shape[1] != channels:
            raise ValueError(f"`x_sigma` has the shape {tuple(x_sigma.shape)}; accepted is (N, {channels}, H, W).")
        accepted = f"a noise level above 0 (model units), or a tensor of {len(x_sigma)}"
        if isinstance(sigma, torch.Tensor):
            check_floating(sigma, "sigma")
        else:
            check_number("sigma", sigma, accepted)
        levels = sigma if isinstance(sigma, torch.Tensor) else torch.tensor(float(sigma))
        if levels.shape not in ((), x_sigma.shape[:1]) or not ((levels > 0) & levels.isfinite()).all():
            raise ValueError(f"`sigma` is {sigma}; accepted is {accepted}.")
        if self.parametrisation.step_sigmas is not None:
            for value in torch.as_tensor(sigma).flatten().tolist():
                if not math.isclose(value, self.nearest_sigma(value), rel_tol=SAME_NOISE):
                    raise ValueError(
                        f"`sigma` is {value}; the network has a learned time embedding, and accepted is the noise of "
                        f"a training step, such as {self.nearest_sigma(value):.6g} (model units)."
                    )
        if class_labels is not None:
            rows = self.conditioning.rows
            if not isinstance(class_labels, torch.Tensor) or class_labels.dtype not in (torch.int64, torch.int32):
                raise TypeError(f"`class_labels` is {class_labels!r}; accepted is a tensor of whole numbers (int64).")
            if class_labels.shape != x_sigma.shape[:1] or not (0 <= class_labels.min() and class_labels.max() < rows):
                raise ValueError(
                    f"`class_labels` is {class_labels.tolist()} for {len(x_sigma)} images; accepted is one label from "
                    f"0 to {rows - 1} for each."
                )
        return self.denoise(x_sigma, sigma, class_labels)

    def denoise(
        self,
        x_sigma: torch.Tensor,
        sigma: torch.Tensor | float,
        class_labels: torch.Tensor | None = None,
        batch_size: int | None = None,
    ) -> torch.Tensor:
        """`forward` without its check of the labels, which would make an accelerator wait in every batch.

        Args:
            x_sigma: As for `forward`, and so the others.
            batch_size: Images in one evaluation of the network. What is done before and after it is done for all at
                once, which is quicker. Default: all.
        """
        sigma = torch.as_tensor(sigma, dtype=x_sigma.dtype, device=x_sigma.device).expand(len(x_sigma))
        if class_labels is not None:
            return self._run(self.unet, x_sigma, sigma, class_labels, batch_size)
        if self.unconditional_unet is not None:
            return self._run(self.unconditional_unet, x_sigma, sigma, None, batch_size)
        rows = range(self.num_classes) if self.null_class is None else (self.null_class,)
        labels = torch.empty(len(x_sigma), dtype=torch.long, device=x_sigma.device)
        return sum(self._run(self.unet, x_sigma, sigma, labels.fill_(row), batch_size) for row in rows) / len(rows)

    def _run(self, network, x_sigma, sigma, labels, batch_size):
        per_image = sigma.view(-1, *[1] * (x_sigma.ndim - 1))
        dtype = next(network.parameters()).dtype
        if dtype.itemsize == 1:  # of storage only; else not asked for, as it walks through all modules in every batch
            dtype = network.dtype
        x_in = self.parametrisation.network_input(x_sigma, per_image).to(dtype)
        time = self.parametrisation.network_time(sigma)
        outputs, size = [], batch_size or len(x_in)
        for first in range(0, len(x_in), size):
            part = slice(first, first + size)
            arguments = self.unconditional_arguments if labels is None else self.conditioning(labels[part])
            outputs.append(network(x_in[part], time[part], return_dict=False, **arguments)[0])
        output = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
        output = output[:, : x_sigma.shape[1]]  # a learned variance comes after the mean
        return self.parametrisation.denoised(x_sigma, per_image, output.to(x_sigma.dtype))


def computing_dtype(network: "ModelMixin | PreTrainedModel") -> str:
    """What a network of diffusers or transformers computes in: its own dtype, or that of autocast where it is on."""
    kind = computing_device(network)
    if torch.is_autocast_enabled(kind):
        return f"autocast {torch.get_autocast_dtype(kind)}".replace("torch.", "")
    return str(network.dtype).removeprefix("torch.")


def computing_device(network: nn.Module) -> str:
    """Kind of the device that a network computes on; its weights may rest elsewhere, and come when they are needed."""
    for part in network.modules():
        device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device).type
    return next(network.parameters()).device.type


def inference(module: nn.Module) -> torch.no_grad | torch.inference_mode:
    """Context for evaluations without gradients: inference mode, the cheaper one, where weights stay in place.

    Hooks of accelerate or diffusers that move weights, as offloading does, would leave weights that no gradient can
    ever pass again; for them it is `no_grad`.
    """
    moved = any(hasattr(part, "_hf_hook") or hasattr(part, "_diffusers_hook") for part in module.modules())
    return torch.no_grad() if moved else torch.inference_mode()


def check_evaluation_mode(denoiser: nn.Module) -> None:
    """Refuse networks in training mode where that makes answers random beside the seeds, or dependent on the batch."""
    for part in denoiser.modules():
        if part.training and (isinstance(part, _BatchNorm) or (isinstance(part, _DropoutNd) and part.p > 0)):
            raise ValueError(
                f"`denoiser` has a network in training mode, where its {type(part).__name__} changes the answers; "
                "accepted is evaluation mode: call the network's `eval()`."
            )


def uncompiled(network: ModelMixin) -> ModelMixin:
    """The network itself, where `torch.compile` has made a module of another class around it."""
    return getattr(network, "_orig_mod", network)


def embedded_steps(network: ModelMixin) -> int | None:
    """Size of the table of a network with a learned time embedding, `None` for others."""
    learned = getattr(network.config, "time_embedding_type", None) == "learned"
    return network.config.num_train_timesteps if learned else None


def check_weights(name: str, network: nn.Module) -> None:
    """Refuse a network with weights that are not finite."""
    weights = [weight for weight in network.parameters() if not weight.is_meta]  # meta: offloaded, not here to read
    finite = [(weight.float() if weight.itemsize == 1 else weight).isfinite().all() for weight in weights]
    if finite and not torch.stack(finite).all():
        raise ValueError(f"`{name}` has weights that are NaN or infinite; accepted are finite weights.")


def check_network(name: str, network: ModelMixin) -> None:
    """Refuse a network that is none, with weights that are not finite, or whose output has not its input's shape."""
    has_classes(name, network)
    check_weights(name, network)
    inputs, outputs = network.config.in_channels, network.config.out_channels or network.config.in_channels
    if outputs not in (inputs, 2 * inputs):
        raise ValueError(
            f"`{name}` has in_channels={inputs} and out_channels={outputs}; accepted are networks with as many "
            "outputs as inputs, or twice as many, the second half being a learned variance."
        )

"""Any class-conditional diffusers network as one denoiser `h(x_sigma, sigma, y) ~ E[x | x_sigma, y]`.

A `Denoiser` combines a parametrisation (the scheduler's meaning of noise levels), a conditioning (how the network
learns of the class) and a network. Code that uses it needs to know nothing of schedulers, prediction types and network
layouts.

Coordinates are variance-exploding (`x_sigma = x + sigma * eps`), units are the model's: images in [-1, 1], `sigma` on
that scale. For a latent diffusion model, `x` is the latent, and `sigma` is on its scale.
"""

import math

import torch
from diffusers import AutoencoderKL, ModelMixin, SchedulerMixin
from torch import nn

from ..common.checks import check_kind, check_number
from ..common.images import check_floating
from .conditioning import ClassLabels, Conditioning, NoClasses, PromptEmbeddings
from .latents import LatentEncoder
from .networks import check_network, check_weights, computing_dtype, inference, timestep_table_size, uncompiled
from .parametrisation import parametrisation


SAME_NOISE = 1e-3
"""Largest relative difference at which a noise level counts as that of a training step."""


class Denoiser(nn.Module):
    """A class-conditional network and its scheduler as `h(x_sigma, sigma, y)`, the mean of the clean image.

    Args:
        unet: A `UNet2DModel`, or a `UNet2DConditionModel` without cross-attention, with a class embedding
            (`num_class_embeds`, or `class_embed_type="timestep"`). If it has twice as many output channels as input
            channels, the second half (a learned variance) is ignored. Also a `DiTTransformer2DModel`, or a
            text-conditional `UNet2DConditionModel` with `prompt_embeddings`.
        scheduler: A scheduler with `alphas_cumprod` and prediction type epsilon, v_prediction or sample, an EDM
            scheduler, `CMStochasticIterativeScheduler` or `FlowMatchEulerDiscreteScheduler`. It is only read, never
            changed.
        num_classes: Number of classes. Required only if `unet.config.num_class_embeds` does not state it. 0: a network
            without classes, which can denoise but not classify.
        null_class: Index of the embedding row that training with label dropout reserved for "no class". It must be
            the last one. `None` if there is none (a DiT always has one).
        unconditional_unet: A second network, without classes, that serves as the unconditional denoiser.
        prompt_embeddings: `encoder_hidden_states` of the classes, shape `(K, tokens, channels)`, with a last row for
            "no class" if `null_class` names it; see `embed_prompts`.
        vae: Autoencoder of a latent diffusion model. `encode` then maps images to its latents.

    The unconditional denoiser is, in this order, the `unconditional_unet`, the `null_class`, or the mean of `h` over
    the classes under a uniform prior (one network evaluation per class). `null_source` states which one it is.

    A network with a learned time embedding (a table) knows only the noise levels of whole training steps. It is given
    the nearest step, and only images that carry that step's noise can be denoised; `nearest_sigma` returns it.

    Raises:
        TypeError: An argument, such as the network or the `vae`, has an unsupported class.
        ValueError: The network has no class embedding, an output with neither as many channels as its input nor twice
            as many, weights that are not finite, is conditioned on more than a class, or disagrees with `num_classes`
            or `null_class`; or the scheduler has no known noise level, or not the timesteps of the network.

    Example:
        >>> from diffusers import DDPMScheduler, UNet2DModel
        >>> config = {"block_out_channels": (8,), "norm_num_groups": 4, "sample_size": 8, "num_class_embeds": 3}
        >>> blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
        >>> h = Denoiser(UNet2DModel(**config, **blocks).eval(), DDPMScheduler())
        >>> x_sigma, y = torch.randn(2, 3, 8, 8), torch.tensor([0, 2])
        >>> h(x_sigma, 0.5, y).shape, h.num_classes, h.null_source
        (torch.Size([2, 3, 8, 8]), 3, 'class_mean')
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
        check_kind("num_classes", num_classes, int, type(None))
        check_kind("null_class", null_class, int, type(None))
        network = uncompiled(unet)
        check_network("unet", network)
        self.conditioning: Conditioning
        if num_classes == 0:
            if null_class is not None or unconditional_unet is not None or prompt_embeddings is not None:
                raise ValueError(
                    "`num_classes` must be above 0 beside `null_class`, `unconditional_unet` or `prompt_embeddings`, "
                    "got 0. A network without classes takes none of them."
                )
            self.conditioning = NoClasses("unet", network)
            unconditional_unet = unet
        elif prompt_embeddings is not None:
            self.conditioning = PromptEmbeddings(network, prompt_embeddings, num_classes, null_class)
        else:
            self.conditioning = ClassLabels(network, num_classes, null_class)
        self.num_classes, self.null_class = self.conditioning.num_classes, self.conditioning.null_class

        self.encoder = None
        if vae is not None:
            self.encoder = LatentEncoder(vae, unet.config.in_channels)
            check_weights("vae", vae)

        table_sizes = [timestep_table_size(network)]
        if unconditional_unet is not None:
            unconditional_network = uncompiled(unconditional_unet)
            check_network("unconditional_unet", unconditional_network)
            self.unconditional_conditioning = NoClasses("unconditional_unet", unconditional_network)
            table_sizes.append(timestep_table_size(unconditional_network))

        self.parametrisation = parametrisation(scheduler, [size for size in table_sizes if size is not None])
        self.scheduler = scheduler
        self.unet = unet
        self.unconditional_unet = unconditional_unet

    @property
    def null_source(self) -> str:
        """Where the unconditional denoiser comes from: `unconditional_unet`, `null_class` or `class_mean`."""
        if self.unconditional_unet is not None:
            return "unconditional_unet"
        return "class_mean" if self.null_class is None else "null_class"

    @property
    def unconditional_network(self) -> ModelMixin:
        """The network that denoises without a class."""
        return self.unet if self.unconditional_unet is None else self.unconditional_unet

    @property
    def null_evaluations(self) -> int:
        """Network evaluations that it costs to denoise one image without a class."""
        return self.num_classes if self.null_source == "class_mean" else 1

    @property
    def dtype(self) -> str:
        """Name of the dtype that the network computes in: its own dtype, or that of autocast if it is enabled."""
        return computing_dtype(self.unet)

    def inference(self) -> torch.no_grad | torch.inference_mode:
        """Context for evaluations without gradients."""
        return inference(self)

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Smallest and largest noise level (model units) that the network was trained for."""
        return self.parametrisation.sigma_min, self.parametrisation.sigma_max

    def nearest_sigma(self, sigma: float) -> float:
        """The noise level nearest to `sigma` that the network knows exactly.

        This is `sigma` itself, unless the network has a learned time embedding: then it is that of a training step.

        Args:
            sigma: Noise level, model units, above 0.

        Returns:
            Noise level, model units. Distances are measured in `log sigma`.
        """
        steps = self.parametrisation.step_sigmas
        if steps is None:
            return sigma
        nearest = (steps.log() - math.log(sigma)).abs().argmin()
        return steps[nearest].item()

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of the images, in pixels; `None` if the network takes images of any size."""
        size = self.unet.config.sample_size
        if not size:
            return None
        height, width = (size, size) if isinstance(size, int) else size
        return self._pixels_per_value * height, self._pixels_per_value * width

    @property
    def image_channels(self) -> int:
        """Channels of the images."""
        if self.encoder is not None:
            return self.encoder.vae.config.in_channels
        return self.unet.config.in_channels

    @property
    def _pixels_per_value(self) -> int:
        return 1 if self.encoder is None else self.encoder.downscaling

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Map images to the space in which the network denoises: unchanged, or to latents.

        Args:
            images: Shape `(N, C, H, W)`, in [-1, 1].

        Returns:
            The images themselves, or the latents of a latent diffusion model.
        """
        return images if self.encoder is None else self.encoder(images)

    def check_images(self, images: torch.Tensor) -> None:
        """Raise unless the network can take a batch of images.

        Args:
            images: What to check.

        Raises:
            TypeError: `images` is not a floating-point tensor.
            ValueError: It does not have the shape `(N, C, H, W)` with N at least 1 and the model's channels and size.
        """
        check_floating(images)
        channels, size = self.image_channels, self.image_size
        sides = tuple(images.shape[2:])
        if size is not None:
            expected = f"{size[0]} x {size[1]} pixels"
            sides_fit = sides == size
        else:
            multiple = self._pixels_per_value * 2 ** (len(self.unet.config.block_out_channels) - 1)
            expected = f"sides that are multiples of {multiple} pixels"
            sides_fit = all(side % multiple == 0 for side in sides)
        if images.ndim != 4 or images.numel() == 0 or images.shape[1] != channels or not sides_fit:
            raise ValueError(
                f"`images` must have the shape (N, {channels}, height, width) with at least one image and {expected}, "
                f"got {tuple(images.shape)}."
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
            Denoised images with the shape and dtype of `x_sigma`, whatever the dtype of the network.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: An argument has the wrong shape; `class_labels` contains a label that the network does not
                have; `sigma` is not above 0, or not the noise level of a training step although the network has a
                learned time embedding.
        """
        check_floating(x_sigma, "x_sigma")
        channels = self.unet.config.in_channels
        if x_sigma.ndim != 4 or x_sigma.numel() == 0 or x_sigma.shape[1] != channels:
            raise ValueError(f"`x_sigma` must have the shape (N, {channels}, H, W), got {tuple(x_sigma.shape)}.")
        self._check_sigma(sigma, len(x_sigma))
        if class_labels is not None:
            self._check_labels(class_labels, len(x_sigma))
        return self.denoise(x_sigma, sigma, class_labels)

    def denoise(
        self,
        x_sigma: torch.Tensor,
        sigma: torch.Tensor | float,
        class_labels: torch.Tensor | None = None,
        batch_size: int | None = None,
    ) -> torch.Tensor:
        """`forward` without its checks, which would make an accelerator wait in every batch.

        Args:
            x_sigma: Noisy images `x + sigma * eps`, model units, shape `(N, C, H, W)`, float32 or float64.
            sigma: Noise level, model units, a number or shape `(N,)`.
            class_labels: Class indices, shape `(N,)`, or `None` for the unconditional denoiser.
            batch_size: Images per network evaluation. All other steps handle all images at once, which is faster.
                Default: all images.

        Returns:
            Denoised images with the shape and dtype of `x_sigma`.
        """
        sigma = torch.as_tensor(sigma, dtype=x_sigma.dtype, device=x_sigma.device).expand(len(x_sigma))
        if class_labels is not None:
            return self._evaluate(self.unet, self.conditioning, x_sigma, sigma, class_labels, batch_size)
        labels = torch.zeros(len(x_sigma), dtype=torch.long, device=x_sigma.device)
        if self.unconditional_unet is not None:
            conditioning = self.unconditional_conditioning
            return self._evaluate(self.unconditional_unet, conditioning, x_sigma, sigma, labels, batch_size)
        if self.null_class is not None:
            return self._evaluate(self.unet, self.conditioning, x_sigma, sigma, labels + self.null_class, batch_size)
        total = torch.zeros_like(x_sigma)
        for y in range(self.num_classes):
            total = total + self._evaluate(self.unet, self.conditioning, x_sigma, sigma, labels + y, batch_size)
        return total / self.num_classes

    def _evaluate(
        self,
        network: ModelMixin,
        conditioning: Conditioning,
        x_sigma: torch.Tensor,
        sigma: torch.Tensor,
        labels: torch.Tensor,
        batch_size: int | None,
    ) -> torch.Tensor:
        """Denoise with one network: parametrise, call the network batch by batch, recover `x0` from its output."""
        sigma_by_image = sigma.view(-1, 1, 1, 1)
        dtype = next(network.parameters()).dtype
        if dtype.itemsize == 1:
            # Weights are only stored in eight bits. `network.dtype` is what the network computes in, but it walks
            # through all modules, too slowly to be asked in every batch of every network.
            dtype = network.dtype
        network_input = self.parametrisation.network_input(x_sigma, sigma_by_image).to(dtype)
        time = self.parametrisation.network_time(sigma)
        size = len(x_sigma) if batch_size is None else batch_size
        outputs = []
        for first in range(0, len(x_sigma), size):
            batch = slice(first, first + size)
            arguments = conditioning(labels[batch])
            outputs.append(network(network_input[batch], time[batch], return_dict=False, **arguments)[0])
        output = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
        mean = output[:, : x_sigma.shape[1]]  # a learned variance comes after the mean
        return self.parametrisation.denoised(x_sigma, sigma_by_image, mean.to(x_sigma.dtype))

    def _check_sigma(self, sigma: torch.Tensor | float, num_images: int) -> None:
        expected = f"a noise level above 0 (model units), or a tensor of {num_images}"
        if isinstance(sigma, torch.Tensor):
            check_floating(sigma, "sigma")
        else:
            check_number("sigma", sigma, expected)
        levels = sigma if isinstance(sigma, torch.Tensor) else torch.tensor(float(sigma))
        if levels.shape not in ((), (num_images,)) or not ((levels > 0) & levels.isfinite()).all():
            raise ValueError(f"`sigma` must be {expected}, got {sigma}.")
        if self.parametrisation.step_sigmas is None:
            return
        for level in torch.as_tensor(sigma).flatten().tolist():
            nearest = self.nearest_sigma(level)
            if not math.isclose(level, nearest, rel_tol=SAME_NOISE):
                raise ValueError(
                    "`sigma` must be the noise level of a training step, since the network has a learned time "
                    f"embedding, such as {nearest:.6g} (model units), got {level}."
                )

    def _check_labels(self, class_labels: torch.Tensor, num_images: int) -> None:
        if not isinstance(class_labels, torch.Tensor) or class_labels.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"`class_labels` must be a tensor of integers (int64 or int32), got {class_labels!r}.")
        rows = self.conditioning.rows
        if class_labels.shape != (num_images,) or class_labels.min() < 0 or class_labels.max() >= rows:
            raise ValueError(
                f"`class_labels` must be one label from 0 to {rows - 1} for each of the {num_images} images, got "
                f"{class_labels.tolist()}."
            )

"""Any class-conditional diffusers network as one denoiser `h(x_sigma, sigma, y) ~ E[x | x_sigma, y]`.

A `Denoiser` combines a parametrisation (the scheduler's meaning of noise levels), a conditioning (how the network
learns of the class) and a network, and perhaps a second network without classes, with a parametrisation of its own.
Code that uses it needs to know nothing of schedulers, prediction types and network layouts.

Coordinates are variance-exploding (`x_sigma = x + sigma * eps`), units are the model's: images in [-1, 1], `sigma` on
that scale. For a latent diffusion model, `x` is the latent, and `sigma` is on its scale.
"""

import torch
from diffusers import AutoencoderKL, ModelMixin, SchedulerMixin
from torch import nn

from ..common.checks import check_kind
from ..common.images import check_floating
from .conditioning import ClassLabels, Conditioning, NoClasses, PromptEmbeddings, check_labels
from .latents import LatentEncoder
from .networks import (
    check_network,
    check_same_images,
    check_weights,
    computing_dtype,
    image_sides,
    inference,
    timestep_table_size,
    uncompiled,
)
from .one_network import check_noise, denoise_with
from .parametrisation import two_parametrisations


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
        unconditional_unet: A second network, without classes, that serves as the unconditional denoiser. It takes
            images of the same size and channels.
        prompt_embeddings: `encoder_hidden_states` of the classes, shape `(K, tokens, channels)`, with a last row for
            "no class" if `null_class` names it; see `embed_prompts`.
        vae: Autoencoder of a latent diffusion model. `encode` then maps images to its latents.
        unconditional_scheduler: Scheduler that `unconditional_unet` was trained with, or an equivalent one, of any of
            the families above: both networks denoise `x + sigma * eps`, each in its own coordinates. Default:
            `scheduler`.

    The unconditional denoiser is, in this order, the `unconditional_unet`, the `null_class`, or the mean of `h` over
    the classes under a uniform prior (one network evaluation per class). `null_source` states which one it is.

    A network with a learned time embedding (a table) knows only the noise levels of whole training steps. It is given
    the nearest step, and only images that carry that step's noise can be denoised; `nearest_sigma` and
    `nearest_unconditional_sigma` return it. Networks that share a scheduler share its whole steps.

    Raises:
        TypeError: An argument, such as the network or the `vae`, has an unsupported class.
        ValueError: The network has no class embedding, an output with neither as many channels as its input nor twice
            as many, weights that are not finite, is conditioned on more than a class, or disagrees with `num_classes`
            or `null_class`; the second network takes other images; a scheduler has no known noise level, or not the
            timesteps of its network; or there is an `unconditional_scheduler` without an `unconditional_unet`.

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
        unconditional_scheduler: SchedulerMixin | None = None,
    ):
        super().__init__()
        check_kind("num_classes", num_classes, int, type(None))
        check_kind("null_class", null_class, int, type(None))
        network = uncompiled(unet)
        check_network("unet", network)
        if unconditional_scheduler is not None and unconditional_unet is None:
            raise ValueError(
                "`unconditional_scheduler` must be None without an `unconditional_unet`, got "
                f"{type(unconditional_scheduler).__name__}."
            )
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

        table_sizes: tuple[int | None, int | None] = (timestep_table_size(network), None)
        if unconditional_unet is not None:
            unconditional_network = uncompiled(unconditional_unet)
            check_network("unconditional_unet", unconditional_network)
            check_same_images(network, unconditional_network)
            self.unconditional_conditioning = NoClasses("unconditional_unet", unconditional_network)
            table_sizes = (timestep_table_size(network), timestep_table_size(unconditional_network))

        self.parametrisation, self.unconditional_parametrisation = two_parametrisations(
            scheduler, unconditional_scheduler, table_sizes
        )
        self.scheduler = scheduler
        self.unconditional_scheduler = unconditional_scheduler
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
        """Smallest and largest noise level (model units) that the class-conditional network was trained for."""
        return self.parametrisation.sigma_min, self.parametrisation.sigma_max

    @property
    def unconditional_sigma_range(self) -> tuple[float, float]:
        """Smallest and largest noise level (model units) that the unconditional denoiser was trained for."""
        return self.unconditional_parametrisation.sigma_min, self.unconditional_parametrisation.sigma_max

    def nearest_sigma(self, sigma: float) -> float:
        """The noise level nearest to `sigma` that the class-conditional network knows exactly.

        This is `sigma` itself, unless the network has a learned time embedding: then it is that of a training step.

        Args:
            sigma: Noise level, model units, above 0.

        Returns:
            Noise level, model units. Distances are measured in `log sigma`.
        """
        return self.parametrisation.nearest_sigma(sigma)

    def nearest_unconditional_sigma(self, sigma: float) -> float:
        """The noise level nearest to `sigma` that the unconditional denoiser knows exactly.

        Args:
            sigma: Noise level, model units, above 0.

        Returns:
            Noise level, model units, as `nearest_sigma` returns it.
        """
        return self.unconditional_parametrisation.nearest_sigma(sigma)

    @property
    def unconditional_settings(self) -> dict:
        """What a record states about the unconditional denoiser besides weights: its source, and its own scheduler."""
        settings: dict = {"null_source": self.null_source}
        if self.unconditional_scheduler is not None:
            settings["unconditional_scheduler"] = self.unconditional_parametrisation.settings
        return settings

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of the images, in pixels; `None` if the network takes images of any size."""
        sides = image_sides(self.unet)
        if sides is None:
            return None
        height, width = sides
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
        told = self.unconditional_parametrisation if class_labels is None else self.parametrisation
        check_noise(sigma, len(x_sigma), told)
        if class_labels is not None:
            check_labels(class_labels, len(x_sigma), self.conditioning.rows)
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
        if isinstance(sigma, torch.Tensor):
            sigma = sigma.to(x_sigma).expand(len(x_sigma))
        else:  # filled in there: a number that is copied to an accelerator would make it wait
            sigma = torch.full((len(x_sigma),), sigma, dtype=x_sigma.dtype, device=x_sigma.device)
        if class_labels is not None:
            return self._conditional(x_sigma, sigma, class_labels, batch_size)
        labels = torch.zeros(len(x_sigma), dtype=torch.long, device=x_sigma.device)
        if self.unconditional_unet is not None:
            return denoise_with(
                self.unconditional_unet,
                self.unconditional_conditioning,
                self.unconditional_parametrisation,
                x_sigma,
                sigma,
                labels,
                batch_size,
            )
        if self.null_class is not None:
            return self._conditional(x_sigma, sigma, labels + self.null_class, batch_size)
        total = torch.zeros_like(x_sigma)
        for y in range(self.num_classes):
            total = total + self._conditional(x_sigma, sigma, labels + y, batch_size)
        return total / self.num_classes

    def _conditional(
        self, x_sigma: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor, batch_size: int | None
    ) -> torch.Tensor:
        """Denoise with the class-conditional network."""
        return denoise_with(self.unet, self.conditioning, self.parametrisation, x_sigma, sigma, labels, batch_size)

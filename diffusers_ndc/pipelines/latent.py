"""The pipeline for latent diffusion models: Stable Diffusion with prompts, DiT, latent UNets with class labels."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from diffusers.schedulers import SchedulerMixin
from transformers import CLIPTextModel, CLIPTokenizer

from ..common.checks import check_kind, check_sigma
from ..diffusion.calibration import check_levels
from ..diffusion.classifier import LATENT_NOISE, NoisedDiffusionClassifier
from ..diffusion.denoised_diffusion import DenoisedDiffusionClassifier
from ..diffusion.denoiser import Denoiser
from ..diffusion.noise_levels import NoiseLevels
from ..diffusion.prompts import check_length, embed_prompts, read_prompts
from .inputs import Images
from .pixel import NoisedDiffusionClassifierPipeline, with_integer_labels


class LatentDiffusionClassifierPipeline(NoisedDiffusionClassifierPipeline):
    """A latent diffusion model as a classifier, and with a pixel-space denoiser in front as one with certificates.

    Clean images (`sigma=0`) are encoded, and the diffusion classifier scores the classes on the latents (Li et al.
    2023, arXiv:2303.16203). Noisy images and certificates need `pixel_unet` and `pixel_scheduler`: the smoothing noise
    is on the pixels, is removed by one step of that model, and the clean image that results is classified as above
    (`DenoisedDiffusionClassifier`); the radius belongs to the image that `pixel_unet` sees. Without them they are
    refused, as are the methods `epndc`, `apndc` and `apndc-clean`: none of them is sound in latent space.

    Calls are those of `NoisedDiffusionClassifierPipeline`; `method` is `dc` with `sigma=0`, else `dds`, and may be
    left out. Noise levels are in units of the latents, and those for `sigma=0` serve the denoised images too.

    Args:
        vae: Autoencoder.
        scheduler: Scheduler that the network was trained with, or an equivalent one.
        unet: Text-conditional network, or one with class labels; or there is a `transformer`.
        transformer: DiT. Its null class needs no mention.
        tokenizer: With a text-conditional network, and so `text_encoder` and `prompts`.
        text_encoder: CLIP's.
        pixel_unet: A pixel-space network without classes, or with classes, over whose rows its `h` is averaged.
        pixel_scheduler: The scheduler that it was trained with.
        id2label: Names of the classes by index. Default: their numbers.
        prompts: For each class a prompt or a list of them, whose embeddings are averaged; by class index, or in order.
        null_class: Index of the embedding row for "no class" of a `unet` with class labels, as elsewhere.
        levels: Noise levels as `calibrate` adds them, all for sigma 0.

    Raises:
        TypeError, ValueError: A component is missing or of a class that is not supported, or they do not fit together.
    """

    model_cpu_offload_seq = "pixel_unet->text_encoder->vae->unet->transformer"
    _optional_components = ["unet", "transformer", "tokenizer", "text_encoder", "pixel_unet", "pixel_scheduler"]

    def __init__(
        self,
        vae: AutoencoderKL,
        scheduler: SchedulerMixin,
        unet: UNet2DConditionModel | UNet2DModel | None = None,
        transformer: DiTTransformer2DModel | None = None,
        tokenizer: CLIPTokenizer | None = None,
        text_encoder: CLIPTextModel | None = None,
        pixel_unet: UNet2DModel | UNet2DConditionModel | None = None,
        pixel_scheduler: SchedulerMixin | None = None,
        id2label: dict | None = None,
        prompts: Mapping | Sequence | None = None,
        null_class: int | None = None,
        levels: dict | None = None,
    ):
        DiffusionPipeline.__init__(self)  # the parent's takes other components
        check_components(vae, scheduler, unet, transformer, tokenizer, text_encoder, pixel_unet, pixel_scheduler)
        id2label = None if id2label is None else with_integer_labels(id2label)
        if prompts is not None:
            if null_class is not None:
                raise ValueError(
                    f"`null_class` is {null_class} beside `prompts`; accepted is None: the empty prompt serves as one."
                )
            prompts = self._check_prompts(prompts, tokenizer, text_encoder, id2label)
        if levels is not None:
            check_levels(levels)
        self.register_modules(
            vae=vae,
            scheduler=scheduler,
            unet=unet,
            transformer=transformer,
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            pixel_unet=pixel_unet,
            pixel_scheduler=pixel_scheduler,
        )
        self.register_to_config(id2label=id2label, prompts=prompts, null_class=null_class, levels=levels)
        self._embedded: tuple[tuple, torch.Tensor] | None = None
        # texts are embedded when they are first needed; what fits together is known from the shapes
        embeddings = None
        if prompts is not None and text_encoder is not None:
            embeddings = torch.zeros(len(prompts) + 1, 1, text_encoder.config.hidden_size)
        denoiser = self._denoiser(embeddings)
        if id2label is not None and sorted(id2label) != list(range(denoiser.num_classes)):
            raise ValueError(
                f"`id2label` has the keys {sorted(id2label)}; accepted are 0 to {denoiser.num_classes - 1}, each once."
            )
        if pixel_unet is not None:
            self._pixel_denoiser()

    @staticmethod
    def _check_prompts(
        prompts: Mapping | Sequence,
        tokenizer: CLIPTokenizer | None,
        text_encoder: CLIPTextModel | None,
        id2label: dict | None,
    ) -> dict[int, list[str]]:
        if tokenizer is None or text_encoder is None:
            raise ValueError("`prompts` is given without `tokenizer` and `text_encoder`; accepted are all three.")
        prompts = read_prompts(prompts)
        if id2label is not None and len(id2label) != len(prompts):
            raise ValueError(
                f"`prompts` has {len(prompts)} classes and `id2label` {len(id2label)}; accepted are as many."
            )
        check_length(prompts, tokenizer)
        return prompts

    def set_prompts(self, prompts: Mapping | Sequence, id2label: dict | None = None) -> None:
        """Other classes for a text-conditional model, at once; `levels` that were calibrated stay.

        Args:
            prompts: As for the class.
            id2label: Names of the new classes. Default: their numbers.

        Raises:
            ValueError: The network has no text encoder, or the prompts are not as described.
        """
        id2label = None if id2label is None else with_integer_labels(id2label)
        prompts = self._check_prompts(prompts, self.tokenizer, self.text_encoder, id2label)
        self.register_to_config(prompts=prompts, id2label=id2label)

    @property
    def denoiser(self) -> Denoiser:
        """The components, as they are now, as `h(x_sigma, sigma, y)` on latents."""
        return self._denoiser(None if self.config.prompts is None else self._prompt_embeddings())

    def _denoiser(self, embeddings: torch.Tensor | None) -> Denoiser:
        if embeddings is not None:
            null_class, num_classes = len(embeddings) - 1, None
        else:
            null_class = self.config.null_class
            num_classes = self.config.id2label and len(self.config.id2label)
        network = self.transformer if self.unet is None else self.unet
        return Denoiser(network, self.scheduler, num_classes, null_class, prompt_embeddings=embeddings, vae=self.vae)

    def _prompt_embeddings(self) -> torch.Tensor:
        """Made once for each text encoder, its dtype and device: a thousand classes have many prompts."""
        encoder, device = self.text_encoder, self._execution_device
        key = (self.config.prompts, self.tokenizer, encoder, encoder.dtype, device)
        if self._embedded is None or self._embedded[0] != key:
            self._embedded = key, embed_prompts(self.config.prompts, self.tokenizer, encoder, device)
        return self._embedded[1]

    def _pixel_denoiser(self) -> Denoiser:
        num_classes = 0 if self.pixel_unet.class_embedding is None else None
        try:
            return Denoiser(self.pixel_unet, self.pixel_scheduler, num_classes)
        except ValueError as error:
            raise ValueError(f"`pixel_unet` and `pixel_scheduler` do not make a denoiser: {error}") from error

    def classifier(  # type: ignore[override]  # behind a denoiser it is of another class than the parent promises
        self,
        sigma: float = 0.0,
        method: str | None = None,
        levels: NoiseLevels | None = None,
        batch_size: int = 64,
        seed: int | None = None,
    ) -> NoisedDiffusionClassifier | DenoisedDiffusionClassifier:
        """The classifier as a `torch.nn.Module` from images `(N, C, H, W)` in pixel units to logits `(N, K)`.

        Args:
            sigma: Noise that the images carry, pixel units; 0 for clean images.
            method: `dc` for clean images, `dds` for noisy ones, or `None`.
            levels: Noise levels and weights, units of the latents. Default: the model's own for sigma 0, else
                `default_levels`.
            batch_size: (image, class, level) triples per network evaluation.
            seed: If given, the seed of the noise that every image meets.

        Raises:
            TypeError, ValueError: An argument is not as described, or not sound for a latent model.
        """
        check_sigma(sigma)
        accepted = "dds" if sigma > 0 else "dc"
        if method is not None and not (isinstance(method, str) and method == accepted):
            raise ValueError(
                f"`method` is {method!r} with sigma={sigma} and a latent model; accepted is {accepted!r}. "
                f"{LATENT_NOISE}"
            )
        if sigma > 0 and self.pixel_unet is None:
            raise ValueError(
                f"`sigma` is {sigma} with a latent model and no `pixel_unet`; accepted is 0. {LATENT_NOISE}"
            )
        clean = super().classifier(0.0, "dc", levels, batch_size, seed)
        return clean if sigma == 0 else DenoisedDiffusionClassifier(self._pixel_denoiser(), clean, sigma)

    def _usage(self) -> list[str]:
        if self.pixel_unet is None:
            return ["print(pipe(image).labels)"]
        return super()._usage()

    def calibrate(
        self, images: Images, labels: Sequence[int], sigma: float = 0.0, *args: Any, **settings: Any
    ) -> NoiseLevels:
        """Choose noise levels for clean images, which serve the denoised ones too; see the parent's `calibrate`.

        Raises:
            TypeError, ValueError: `sigma` is not 0, or another argument not as described.
        """
        if sigma != 0:
            raise ValueError(f"`sigma` is {sigma}; accepted is 0: the levels of a latent model are for clean images.")
        return super().calibrate(images, labels, 0.0, *args, **settings)


def check_components(
    vae: object,
    scheduler: object,
    unet: object,
    transformer: object,
    tokenizer: object,
    text_encoder: object,
    pixel_unet: object,
    pixel_scheduler: object,
) -> None:
    """Refuse components of classes that are not supported, and sets of them that make no model."""
    check_kind("vae", vae, AutoencoderKL)
    check_kind("scheduler", scheduler, SchedulerMixin)
    unets = (UNet2DConditionModel, UNet2DModel)
    for name, component, kinds in (
        ("unet", unet, unets),
        ("transformer", transformer, (DiTTransformer2DModel,)),
        ("tokenizer", tokenizer, (CLIPTokenizer,)),
        ("text_encoder", text_encoder, (CLIPTextModel,)),
        ("pixel_unet", pixel_unet, unets),
        ("pixel_scheduler", pixel_scheduler, (SchedulerMixin,)),
    ):
        if component is not None:
            check_kind(name, component, *kinds)
    if (unet is None) == (transformer is None):
        given = "neither is" if unet is None else "both are"
        raise ValueError(f"`unet` and `transformer`: {given} given; accepted is one of them.")
    if (pixel_unet is None) != (pixel_scheduler is None):
        raise ValueError("`pixel_unet` and `pixel_scheduler`: one is given; accepted are both or none.")

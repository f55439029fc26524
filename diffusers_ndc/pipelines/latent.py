"""The pipeline for latent diffusion models: Stable Diffusion with prompts, DiT, latent UNets with class labels."""

from collections.abc import Mapping, Sequence

import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from diffusers.schedulers import SchedulerMixin
from transformers import CLIPTextModel, CLIPTokenizer

from ..common.checks import BatchSize, check_sigma
from ..diffusion.class_sifter import ClassSifter, check_sifter
from ..diffusion.classifier import LATENT_NOISE, NoisedDiffusionClassifier
from ..diffusion.denoised_diffusion import DenoisedDiffusionClassifier
from ..diffusion.denoiser import Denoiser
from ..diffusion.levels_table import check_levels
from ..diffusion.noise_levels import NoiseLevels
from ..diffusion.prompts import embed_prompts
from .base import Sift, check_names, integer_labels
from .latent_components import check_components, check_prompts
from .modular import ModularSavingPipeline
from .reading import ImagesOrPaths


class LatentDiffusionClassifierPipeline(ModularSavingPipeline):
    """A latent diffusion model as a classifier, and with a pixel-space denoiser in front as one with certificates.

    Clean images (`sigma=0`) are encoded, and the diffusion classifier scores the classes on the latents (Li et al.
    2023, arXiv:2303.16203). Noisy images and certificates need `pixel_unet` and `pixel_scheduler`: the smoothing noise
    is on the pixels, one step of that model removes it (Carlini et al. 2022, arXiv:2206.10550), and the clean image
    that results is classified as above (`DenoisedDiffusionClassifier`). The radius is about the image that
    `pixel_unet` sees. Without these components noisy images and certificates raise a `ValueError`, as do the methods
    `epndc`, `apndc` and `apndc-clean`: none of them is sound in latent space.

    The method is `dc` for clean images and `dds` for noisy ones. Noise levels are in units of the latents; the levels
    for `sigma=0` serve the denoised images too.

    Args:
        vae: Autoencoder.
        scheduler: Scheduler that the network was trained with, or an equivalent one.
        unet: Text-conditional network, or one with class labels. Give either `unet` or `transformer`.
        transformer: DiT. It brings its own null class.
        tokenizer: CLIP's tokenizer. A text-conditional network needs `tokenizer`, `text_encoder` and `prompts`.
        text_encoder: CLIP's text encoder.
        pixel_unet: Pixel-space network without classes, or with classes, over which its `h` is averaged.
        pixel_scheduler: Scheduler that `pixel_unet` was trained with.
        id2label: Names of the classes by index. Default: their numbers.
        prompts: A prompt for each class, or a list of prompts, whose embeddings are averaged; by class index, or in
            order.
        null_class: Index of the embedding row for "no class" of a `unet` with class labels, which must be the last
            one; `None` if there is none.
        levels: Noise levels as `calibrate` adds them, all for sigma 0:
            `{"0": {"dc": NoiseLevels(...).to_dict()}}`. Without an entry: `default_levels`.
        sifter: Chooses the candidate classes of images, as `calibrate` fits it. Default: all classes are.

    Raises:
        TypeError, ValueError: A component is missing or of a class that is not supported, or they do not fit together.

    Example:
        >>> from diffusers_ndc import LatentDiffusionClassifierPipeline
        >>> pipe = LatentDiffusionClassifierPipeline.from_pretrained(
        ...     "path/to/stable-diffusion", prompts=["a photo of a cat", "a photo of a dog"]
        ... )  # doctest: +SKIP
        >>> pipe(image).labels  # doctest: +SKIP
        [1]
    """

    model_cpu_offload_seq = "pixel_unet->text_encoder->vae->unet->transformer"
    _optional_components = [
        "unet",
        "transformer",
        "tokenizer",
        "text_encoder",
        "pixel_unet",
        "pixel_scheduler",
        "sifter",
    ]
    _exclude_from_cpu_offload = ["sifter"]

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
        sifter: ClassSifter | None = None,
    ):
        super().__init__()
        check_components(vae, scheduler, unet, transformer, tokenizer, text_encoder, pixel_unet, pixel_scheduler)
        id2label = integer_labels(id2label)
        if prompts is not None:
            if null_class is not None:
                raise ValueError(
                    f"`null_class` must be None with `prompts`, got {null_class}. The empty prompt is the null class."
                )
            prompts = check_prompts(prompts, tokenizer, text_encoder, id2label)
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
            sifter=sifter,
        )
        self.register_to_config(id2label=id2label, prompts=prompts, null_class=null_class, levels=levels)
        self._embedded: tuple[tuple, torch.Tensor] | None = None
        # The prompts are embedded when they are first needed. Whether the parts fit follows from the shapes.
        embeddings = None
        if prompts is not None and text_encoder is not None:
            embeddings = torch.zeros(len(prompts) + 1, 1, text_encoder.config.hidden_size)
        denoiser = self._denoiser(embeddings)
        check_names(id2label, denoiser.num_classes)
        if sifter is not None:
            check_sifter(sifter, denoiser)
        if pixel_unet is not None:
            self._pixel_denoiser()

    def set_prompts(self, prompts: Mapping | Sequence, id2label: dict | None = None) -> None:
        """Give a text-conditional model other classes. Calibrated `levels` stay; a `sifter` knows the old classes only
        and is dropped.

        Args:
            prompts: A prompt for each class, or a list of prompts, whose embeddings are averaged; by class index, or
                in order.
            id2label: Names of the new classes by index. Default: their numbers.

        Raises:
            ValueError: The model has no text encoder, or the prompts are not as described.

        Example:
            >>> pipe.set_prompts(["a photo of a cat", "a photo of a dog"], {0: "cat", 1: "dog"})  # doctest: +SKIP
        """
        id2label = integer_labels(id2label)
        prompts = check_prompts(prompts, self.tokenizer, self.text_encoder, id2label)
        check_names(id2label, len(prompts))
        self.register_to_config(prompts=prompts, id2label=id2label)
        self.register_modules(sifter=None)

    @property
    def denoiser(self) -> Denoiser:
        """The current components as the denoiser `h(x_sigma, sigma, y)` of latents."""
        return self._denoiser(None if self.config.prompts is None else self._prompt_embeddings())

    def _denoiser(self, embeddings: torch.Tensor | None) -> Denoiser:
        num_classes, null_class = None, self.config.null_class
        if embeddings is not None:
            null_class = len(embeddings) - 1  # the empty prompt
        elif self.config.id2label is not None:
            num_classes = len(self.config.id2label)
        network = self.transformer if self.unet is None else self.unet
        return Denoiser(network, self.scheduler, num_classes, null_class, prompt_embeddings=embeddings, vae=self.vae)

    def _prompt_embeddings(self) -> torch.Tensor:
        """Embeddings of the prompts, kept while text encoder, dtype and device stay: a thousand classes have many."""
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
            raise ValueError(f"`pixel_unet` and `pixel_scheduler` must make a denoiser, got: {error}") from error

    def classifier(
        self,
        sigma: float = 0.0,
        method: str | None = None,
        levels: NoiseLevels | None = None,
        batch_size: BatchSize = 64,
        seed: int | None = None,
        sift: Sift | None = None,
    ) -> NoisedDiffusionClassifier | DenoisedDiffusionClassifier:
        """The classifier as a `torch.nn.Module` from images `(N, C, H, W)` in pixel units to logits `(N, K)`.

        It shares the pipeline's networks and can be used like any other classifier: for attacks, for smoothing, in
        other libraries. Logits are differentiable if gradients are on. With a `seed` it is a fixed function of the
        image.

        Args:
            sigma: Standard deviation of the Gaussian noise that the images carry, pixel units; 0 for clean images.
            method: `dc` for clean images (the diffusion classifier), `dds` for noisy ones (with a denoiser in front).
                Default: the one of the two that goes with `sigma`.
            levels: Noise levels and weights, units of the latents. Default: the levels that were calibrated for
                sigma 0, else `default_levels`.
            batch_size: (image, class, level) triples per network evaluation; peak memory depends on it alone. "auto":
                found by a short trial on the device, once for each network and image size.
            seed: Seed of the noise that every image meets. Default: fresh noise for each image.
            sift: What the pipeline's `sifter` does for each image: choose its candidate classes ("candidates"), count
                in the loss as well ("scores", which makes the decision partly discriminative), or nothing (False).
                Default: "candidates" if it was fitted and no `levels` are given, else False.

        Returns:
            The diffusion classifier for clean images, a `DenoisedDiffusionClassifier` for noisy ones.

        Raises:
            TypeError, ValueError: An argument is not as described, or not sound for a latent model.

        Example:
            >>> module = pipe.classifier(sigma=0.25, seed=0)  # doctest: +SKIP
            >>> module(noisy_images).argmax(dim=1)  # doctest: +SKIP
        """
        sigma = check_sigma(sigma)
        self._check_method(sigma, method)
        if sigma > 0 and self.pixel_unet is None:
            raise ValueError(f"`sigma` must be 0 for a latent model without `pixel_unet`, got {sigma}. {LATENT_NOISE}")
        clean = self._diffusion_classifier(0.0, "dc", levels, batch_size, seed, sift)
        if sigma == 0:
            return clean
        return DenoisedDiffusionClassifier(self._pixel_denoiser(), clean, sigma)

    @staticmethod
    def _check_method(sigma: float, method: str | None) -> None:
        expected = "dds" if sigma > 0 else "dc"
        if method is not None and not (isinstance(method, str) and method == expected):
            raise ValueError(
                f"`method` must be {expected!r} or None for a latent model with sigma={sigma}, got {method!r}. "
                f"{LATENT_NOISE}"
            )

    def calibrate(
        self,
        images: ImagesOrPaths,
        labels: Sequence[int],
        sigma: float = 0.0,
        num_levels: int = 12,
        method: str | None = None,
        candidates: NoiseLevels | None = None,
        quantile: float | None = 0.9995,
        batch_size: BatchSize = 64,
        seed: int = 0,
        sift: str | None = "features",
        sift_quantile: float = 0.998,
        num_copies: int = 4,
        cells: tuple[int, int] = (1, 1),
        scores_quantile: float = 0.995,
    ) -> NoiseLevels:
        """Fit a sifter and choose a few noise levels, with weights, on labelled images; keep them with the model.

        They are for clean images and serve the denoised ones too. From then on they are the default, and
        `save_pretrained` saves them. The sifter (`ClassSifter`) chooses an image's candidate classes by features of
        one pass without a class, so that its cost hardly depends on the number of classes. Fewer levels, and fewer
        classes at most of them, make every later call cheaper still. The certificates stay sound whatever is chosen;
        but accuracies mean something only on images that were not used here.

        Args:
            images: Clean labelled images, a few hundred at least: an array `(N, H, W, C)`, a tensor `(N, C, H, W)`, or
                a sequence of PIL images, arrays, tensors or paths; uint8, or floats in [0, 1]. Each image is read anew
                when it is needed, a few times, so that a lazy sequence such as a column of `datasets` may be larger
                than memory. All are read and checked before the network is called.
            labels: Their class indices, with each class among them.
            sigma: Must be 0: the levels are for clean images.
            num_levels: Largest number of levels to keep. If classes are sifted, few images reach the later levels, so
                that more levels cost little.
            method: `dc` or `None`.
            candidates: Levels to choose from, units of the latents, and the weights towards which the new ones are
                shrunk. Default: `default_levels`.
            quantile: Share of the images whose true class must survive the sifting after each level: classes are
                dropped whose loss exceeds the best one by more than the true class's loss does in this share. Only
                images count that are classified correctly without sifting. `None`: no sifting between levels.
            batch_size: (image, class, level) triples per network evaluation; peak memory depends on it alone. "auto":
                found by a short trial on the device, once for each network and image size.
            seed: Seed of the noise.
            sift: `features`: fit a sifter, which needs two images of each class, and sift between levels.
                `losses`: all classes are scored at the first level, and sifted from there on. `None`: all classes are
                scored at all levels.
            sift_quantile: Share of the same images whose class must be a candidate (with `features`).
            num_copies: Draws of the noise for each image (with `features`).
            cells: Rows and columns of the grid whose cells give features of their own (with `features`; of a UNet).
            scores_quantile: As `sift_quantile`, where the scores count in the loss (`sift="scores"`).

        Returns:
            The chosen levels.

        Raises:
            TypeError, ValueError: `sigma` is not 0, or another argument is not as described.
            FloatingPointError: A loss is not finite, for example after an overflow in half precision.

        Example:
            >>> levels = pipe.calibrate(images, labels, num_levels=8)  # doctest: +SKIP
            >>> pipe.save_pretrained("calibrated")  # doctest: +SKIP
        """
        check_sigma(sigma)
        if sigma != 0:
            raise ValueError(f"`sigma` must be 0 to calibrate a latent model, on clean images, got {sigma}.")
        self._check_method(sigma, method)
        return super().calibrate(
            images,
            labels,
            0.0,
            num_levels,
            method,
            candidates,
            quantile,
            batch_size,
            seed,
            sift,
            sift_quantile,
            num_copies,
            cells,
            scores_quantile,
        )

    def _usage(self) -> list[str]:
        if self.pixel_unet is None:
            return ["print(pipe(image).labels)"]
        return super()._usage()

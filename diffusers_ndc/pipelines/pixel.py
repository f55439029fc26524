"""The pipeline for class-conditional diffusion models in pixel space."""

import os

from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.schedulers import SchedulerMixin

from ..checkpoints import EDMUNet2DModel, read_checkpoints
from ..diffusion.calibration import check_levels
from ..diffusion.class_sifter import ClassSifter, check_sifter
from ..diffusion.classifier import NoisedDiffusionClassifier
from ..diffusion.denoiser import Denoiser
from ..diffusion.feature_classifier import FeatureClassifier
from ..diffusion.noise_levels import NoiseLevels
from .base import Sift, check_names, integer_labels
from .certifying import CertifyingPipeline


class NoisedDiffusionClassifierPipeline(CertifyingPipeline):
    """A class-conditional diffusion model as a classifier with provable l2 robustness (Chen et al., arXiv:2402.02316).

    Args:
        unet: Class-conditional network in pixel space. A `UNet2DConditionModel` must have no cross-attention.
        scheduler: Scheduler that it was trained with, or an equivalent one; only its noise levels are used.
        unconditional_unet: Network without classes, the unconditional denoiser of APNDC. Default: the `null_class`, or
            the mean over the classes if there is no null class.
        id2label: Names of the classes by index. Default: their numbers.
        null_class: Index of the embedding row for "no class", which must be the last one; `None` if there is none.
        levels: Noise levels by smoothing sigma (pixel units) and method, as `calibrate` adds them:
            `{"0.25": {"apndc": NoiseLevels(...).to_dict()}, ...}`. Without an entry: `default_levels`.
        sifter: Chooses the candidate classes of noisy copies, as `calibrate` fits it. Default: all classes are.

    Raises:
        ValueError: The network has no classes, the scheduler no known noise level, or `id2label` not one name per
            class.

    Example:
        >>> from diffusers_ndc import NoisedDiffusionClassifierPipeline
        >>> pipe = NoisedDiffusionClassifierPipeline.from_pretrained("path/to/model")  # doctest: +SKIP
        >>> certificate = pipe.certify(image, sigma=0.25)  # doctest: +SKIP
    """

    model_cpu_offload_seq = "unconditional_unet->unet"
    _optional_components = ["unconditional_unet", "sifter"]
    _exclude_from_cpu_offload = ["sifter"]

    def __init__(
        self,
        unet: UNet2DModel | UNet2DConditionModel | EDMUNet2DModel,
        scheduler: SchedulerMixin,
        unconditional_unet: UNet2DModel | UNet2DConditionModel | EDMUNet2DModel | None = None,
        id2label: dict | None = None,
        null_class: int | None = None,
        levels: dict | None = None,
        sifter: ClassSifter | None = None,
    ):
        super().__init__()
        id2label = integer_labels(id2label)
        num_classes = None if id2label is None else len(id2label)
        denoiser = Denoiser(unet, scheduler, num_classes, null_class, unconditional_unet)
        check_names(id2label, denoiser.num_classes)
        if levels is not None:
            check_levels(levels)
        if sifter is not None:
            check_sifter(sifter, denoiser)
        self.register_modules(unet=unet, scheduler=scheduler, unconditional_unet=unconditional_unet, sifter=sifter)
        self.register_to_config(id2label=id2label, null_class=null_class, levels=levels)

    @classmethod
    def from_edm_checkpoint(
        cls,
        path: str | os.PathLike,
        unconditional: str | os.PathLike | None = None,
        id2label: dict | None = None,
        null_class: int | None = None,
    ) -> "NoisedDiffusionClassifierPipeline":
        """The pipeline of a checkpoint of Karras et al. 2022 (arXiv:2206.00364), on the CPU, in float32.

        The published class-conditional networks were trained without label dropout and have no null class. Give the
        unconditional checkpoint too, or APNDC takes the mean over the classes, one network evaluation for each.

        Args:
            path: Class-conditional checkpoint: a published `.pkl`, of which no code is run, or a state dict (`.pt`,
                `.safetensors`) with a JSON file beside it, as `diffusers_ndc.checkpoints.read_checkpoint` describes.
            unconditional: Checkpoint without classes, of the same preconditioning and image size.
            id2label: Names of the classes by index. Default: their numbers.
            null_class: The number of classes, if the label of all zeros was trained as "no class". Default: no null
                class, unless the network's arguments say that it was trained with label dropout.

        Returns:
            The pipeline.

        Raises:
            FileNotFoundError: A file does not exist.
            ValueError: A file is damaged, holds something else, or does not fit the other arguments.

        Example:
            >>> pipe = NoisedDiffusionClassifierPipeline.from_edm_checkpoint(
            ...     "edm-cifar10-32x32-cond-vp.pkl", "edm-cifar10-32x32-uncond-vp.pkl"
            ... )  # doctest: +SKIP
        """
        unet, scheduler, unconditional_unet, null_class = read_checkpoints(path, unconditional, null_class)
        return cls(unet, scheduler, unconditional_unet, id2label, null_class)

    @property
    def denoiser(self) -> Denoiser:
        """The current components as the denoiser `h(x_sigma, sigma, y)` of images."""
        id2label = self.config.id2label
        num_classes = None if id2label is None else len(id2label)
        return Denoiser(self.unet, self.scheduler, num_classes, self.config.null_class, self.unconditional_unet)

    def classifier(
        self,
        sigma: float = 0.0,
        method: str | None = None,
        levels: NoiseLevels | None = None,
        batch_size: int = 64,
        seed: int | None = None,
        sift: Sift | None = None,
    ) -> NoisedDiffusionClassifier | FeatureClassifier:
        """The classifier as a `torch.nn.Module` from images `(N, C, H, W)` in pixel units to logits `(N, K)`.

        It shares the pipeline's networks and can be used like any other classifier: for attacks, for smoothing, in
        other libraries. Logits are differentiable if gradients are on. With a `seed` it is a fixed function of the
        image.

        Args:
            sigma: Standard deviation of the Gaussian noise that the images carry, pixel units; 0 for clean images.
            method: `dc` for clean images (the diffusion classifier), `apndc`, `epndc` or `apndc-clean` for noisy ones
                (Chen et al., arXiv:2402.02316). Default: `dc` for clean images, else `apndc`. `features`: the sifter
                alone, without a likelihood, as a baseline; `levels` and `seed` are not used then.
            levels: Noise levels and weights. Default: the levels that were calibrated for this sigma and method, else
                `default_levels`.
            batch_size: (image, class, level) triples per network evaluation; peak memory depends on it alone.
            seed: Seed of the noise that every image meets. Default: fresh noise for each image.
            sift: What the pipeline's `sifter` does for each image: choose its candidate classes ("candidates"), count
                in the loss as well ("scores", which makes the decision partly discriminative), or nothing (False).
                Default: "candidates" if it was fitted for this sigma and method and no `levels` are given, else False.

        Returns:
            The classifier.

        Raises:
            TypeError, ValueError: An argument is not as described, or beyond what the model was trained for.

        Example:
            >>> module = pipe.classifier(sigma=0.25, seed=0)  # doctest: +SKIP
            >>> module(noisy_images).argmax(dim=1)  # doctest: +SKIP
        """
        if method == "features":
            return self._feature_classifier(sigma, batch_size)
        return self._diffusion_classifier(sigma, method, levels, batch_size, seed, sift)

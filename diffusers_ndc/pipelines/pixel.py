"""The pipeline for class-conditional diffusion models in pixel space."""

import os

from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.schedulers import SchedulerMixin

from ..checkpoints import (
    CheckpointPair,
    EDMUNet2DModel,
    OpenAIArguments,
    OpenAIUNet2DModel,
    read_checkpoints,
    read_openai_checkpoints,
)
from ..common.checks import BatchSize
from ..diffusion.class_sifter import ClassSifter, check_sifter
from ..diffusion.classifier import NoisedDiffusionClassifier
from ..diffusion.denoiser import Denoiser
from ..diffusion.feature_classifier import FeatureClassifier
from ..diffusion.levels_table import check_levels
from ..diffusion.noise_levels import NoiseLevels
from .base import Sift, check_names, integer_labels
from .modular import ModularSavingPipeline


class NoisedDiffusionClassifierPipeline(ModularSavingPipeline):
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
        unconditional_scheduler: Scheduler that `unconditional_unet` was trained with, or an equivalent one. The two
            networks may be of different origin: each is called in its own coordinates. Default: `scheduler`.

    The images' noise must be one that the unconditional denoiser knows, the levels ones that `unet` knows.

    Raises:
        ValueError: The network has no classes, a scheduler no known noise level, or `id2label` not one name per
            class; or the networks take images of different sizes or channels.

    Example:
        >>> from diffusers_ndc import NoisedDiffusionClassifierPipeline
        >>> pipe = NoisedDiffusionClassifierPipeline.from_pretrained("path/to/model")  # doctest: +SKIP
        >>> certificate = pipe.certify(image, sigma=0.25)  # doctest: +SKIP
    """

    model_cpu_offload_seq = "unconditional_unet->unet"
    _optional_components = ["unconditional_unet", "unconditional_scheduler", "sifter"]
    _exclude_from_cpu_offload = ["sifter"]

    def __init__(
        self,
        unet: UNet2DModel | UNet2DConditionModel | EDMUNet2DModel | OpenAIUNet2DModel,
        scheduler: SchedulerMixin,
        unconditional_unet: UNet2DModel | UNet2DConditionModel | EDMUNet2DModel | OpenAIUNet2DModel | None = None,
        id2label: dict | None = None,
        null_class: int | None = None,
        levels: dict | None = None,
        sifter: ClassSifter | None = None,
        unconditional_scheduler: SchedulerMixin | None = None,
    ):
        super().__init__()
        id2label = integer_labels(id2label)
        num_classes = None if id2label is None else len(id2label)
        denoiser = Denoiser(
            unet,
            scheduler,
            num_classes,
            null_class,
            unconditional_unet,
            unconditional_scheduler=unconditional_scheduler,
        )
        check_names(id2label, denoiser.num_classes)
        if levels is not None:
            check_levels(levels)
        if sifter is not None:
            check_sifter(sifter, denoiser)
        self.register_modules(
            unet=unet,
            scheduler=scheduler,
            unconditional_unet=unconditional_unet,
            unconditional_scheduler=unconditional_scheduler,
            sifter=sifter,
        )
        self.register_to_config(id2label=id2label, null_class=null_class, levels=levels)

    @classmethod
    def from_edm_checkpoint(
        cls,
        path: str | os.PathLike,
        unconditional: str | os.PathLike | None = None,
        id2label: dict | None = None,
        null_class: int | None = None,
        unconditional_arguments: dict | None = None,
    ) -> "NoisedDiffusionClassifierPipeline":
        """The pipeline of a checkpoint of Karras et al. 2022 (arXiv:2206.00364), on the CPU, in float32.

        The published class-conditional networks were trained without label dropout and have no null class. Give the
        unconditional checkpoint too, or APNDC takes the mean over the classes, one network evaluation for each.

        Args:
            path: Class-conditional checkpoint: a published `.pkl`, of which no code is run, or a state dict (`.pt`,
                `.safetensors`) with a JSON file beside it, as `diffusers_ndc.checkpoints.read_checkpoint` describes.
                Or its address, `https://HOST/FILE` or `hf://OWNER/REPOSITORY[@REVISION]/FILE`: the file is downloaded
                once, and must have a SHA-256 given as `#sha256=DIGITS` at the end.
            unconditional: Checkpoint without classes, of the same image size. It may have another preconditioning, or
                be one of OpenAI, as `from_openai_checkpoint` takes it; which one is told from the file. The pipeline
                then has its scheduler as `unconditional_scheduler`.
            id2label: Names of the classes by index. Default: their numbers.
            null_class: The number of classes, if the label of all zeros was trained as "no class". Default: no null
                class, unless the network's arguments say that it was trained with label dropout.
            unconditional_arguments: How an unconditional network of OpenAI was trained, by the names of the arguments
                of `from_openai_checkpoint`. Not needed for a published one.

        Returns:
            The pipeline.

        Raises:
            FileNotFoundError: A file does not exist.
            OSError: A file cannot be downloaded.
            ValueError: A file is damaged, holds something else, or does not fit the other arguments.

        Example:
            >>> pipe = NoisedDiffusionClassifierPipeline.from_edm_checkpoint(
            ...     "edm-cifar10-32x32-cond-vp.pkl", "edm-cifar10-32x32-uncond-vp.pkl"
            ... )  # doctest: +SKIP
            >>> of_two_families = NoisedDiffusionClassifierPipeline.from_edm_checkpoint(
            ...     "edm-imagenet-64x64-cond-adm.pkl", "imagenet64_uncond_100M_1500K.pt"
            ... )  # doctest: +SKIP
        """
        others = OpenAIArguments.from_dict(unconditional_arguments or {}, "unconditional_arguments")
        return cls._of_pair(read_checkpoints(path, unconditional, null_class, others), id2label)

    @classmethod
    def from_openai_checkpoint(
        cls,
        path: str | os.PathLike,
        unconditional: str | os.PathLike | None = None,
        id2label: dict | None = None,
        *,
        image_size: int | None = None,
        num_heads: int | None = None,
        num_head_channels: int | None = None,
        use_new_attention_order: bool | None = None,
        noise_schedule: str | None = None,
        diffusion_steps: int | None = None,
        rescale_timesteps: bool | None = None,
        predict_xstart: bool | None = None,
        num_classes: int | None = None,
        unconditional_arguments: dict | None = None,
    ) -> "NoisedDiffusionClassifierPipeline":
        """The pipeline of a checkpoint of OpenAI's guided-diffusion or improved-diffusion, on the CPU, in float32.

        guided-diffusion is Dhariwal & Nichol 2021 (arXiv:2105.05233), improved-diffusion Nichol & Dhariwal 2021
        (arXiv:2102.09672). The architecture is told from the weights. What they do not tell is known for the published
        networks, which are recognised by the names and shapes of their tensors. For every other network it must be
        given, as in its training; the arguments have the names of OpenAI's flags. Given arguments win.

        The networks have no null class. Give an unconditional checkpoint of the same image size too (published ones:
        ImageNet 256 x 256 of guided-diffusion, ImageNet 64 x 64 of improved-diffusion), or APNDC takes the mean over
        the classes, one network evaluation for each.

        Args:
            path: Class-conditional checkpoint: a state dict (`.pt`, `.pth`, `.safetensors`) of a network, of which no
                code is run. Classifiers, super-resolution networks and states of optimizers raise an error. Or its
                address, `https://HOST/FILE` or `hf://OWNER/REPOSITORY[@REVISION]/FILE`: the file is downloaded once,
                and must have a SHA-256 given as `#sha256=DIGITS` at the end.
            unconditional: Checkpoint without classes, of the same image size. It may have another noise schedule, or
                be one of Karras et al. 2022 (EDM), as `from_edm_checkpoint` takes it; which one is told from the file.
                The pipeline then has its scheduler as `unconditional_scheduler`.
            id2label: Names of the classes by index. Default: their numbers.
            image_size: Height and width of the images, in pixels.
            num_heads: Number of heads of every attention. `num_head_channels` takes its place if both are given.
                Networks with another `num_heads_upsample` are not supported.
            num_head_channels: Width of every head; -1, as in OpenAI's scripts, if `num_heads` decides.
            use_new_attention_order: Whether queries, keys and values lie one after the other in the weights. False
                for networks of improved-diffusion.
            noise_schedule: `linear` or `cosine`.
            diffusion_steps: Number T of noise levels in training.
            rescale_timesteps: Whether the network was told `1000 t / T` instead of `t`. The default is True in
                improved-diffusion, False in guided-diffusion; without effect if T is 1000.
            predict_xstart: Whether the network predicts the clean image instead of the noise.
            num_classes: Number of trained classes, the first rows of the class embedding: OpenAI's scripts give every
                class-conditional network 1000 rows. Default: the number of names in `id2label`.
            unconditional_arguments: These arguments, by name, for an unconditional network of OpenAI. If it is not a
                published one, image size, noise schedule, number of steps and prediction are those of the other
                network unless they are given.

        Returns:
            The pipeline.

        Raises:
            FileNotFoundError: A file does not exist.
            OSError: A file cannot be downloaded.
            ValueError: A file is damaged, holds something else, or does not fit the other arguments; or an argument
                is needed and not given.

        Example:
            >>> pipe = NoisedDiffusionClassifierPipeline.from_openai_checkpoint(
            ...     "256x256_diffusion.pt", "256x256_diffusion_uncond.pt"
            ... )  # doctest: +SKIP
            >>> own = NoisedDiffusionClassifierPipeline.from_openai_checkpoint(
            ...     "ema_0.9999_500000.pt", image_size=32, num_heads=4, use_new_attention_order=False, num_classes=10,
            ...     noise_schedule="cosine", diffusion_steps=4000, rescale_timesteps=True, predict_xstart=False
            ... )  # doctest: +SKIP
        """
        names = integer_labels(id2label)
        arguments = OpenAIArguments(
            image_size=image_size,
            num_heads=num_heads,
            num_head_channels=num_head_channels,
            use_new_attention_order=use_new_attention_order,
            noise_schedule=noise_schedule,
            diffusion_steps=diffusion_steps,
            rescale_timesteps=rescale_timesteps,
            predict_xstart=predict_xstart,
            num_classes=len(names) if names is not None and num_classes is None else num_classes,
        )
        others = OpenAIArguments.from_dict(unconditional_arguments or {}, "unconditional_arguments")
        return cls._of_pair(read_openai_checkpoints(path, unconditional, arguments, others), id2label)

    @classmethod
    def _of_pair(cls, pair: CheckpointPair, id2label: dict | None) -> "NoisedDiffusionClassifierPipeline":
        """The pipeline of networks and schedulers from checkpoints."""
        return cls(
            pair.unet,
            pair.scheduler,
            pair.unconditional_unet,
            id2label,
            pair.null_class,
            unconditional_scheduler=pair.unconditional_scheduler,
        )

    @property
    def denoiser(self) -> Denoiser:
        """The current components as the denoiser `h(x_sigma, sigma, y)` of images."""
        id2label = self.config.id2label
        num_classes = None if id2label is None else len(id2label)
        return Denoiser(
            self.unet,
            self.scheduler,
            num_classes,
            self.config.null_class,
            self.unconditional_unet,
            unconditional_scheduler=self.unconditional_scheduler,
        )

    def classifier(
        self,
        sigma: float = 0.0,
        method: str | None = None,
        levels: NoiseLevels | None = None,
        batch_size: BatchSize = 64,
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
            batch_size: (image, class, level) triples per network evaluation; peak memory depends on it alone. "auto":
                found by a short trial on the device, once for each network and image size.
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
        if isinstance(method, str) and method == "features":
            return self._feature_classifier(sigma, batch_size)
        return self._diffusion_classifier(sigma, method, levels, batch_size, seed, sift)

"""The diffusers pipeline that people load: classify, predict and certify with a class-conditional UNet."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.schedulers import SchedulerMixin
from diffusers.utils import BaseOutput

from ..certification.certificate import Certificate
from ..certification.lipschitz import LEVELS, LipschitzCertificate
from ..certification.procedures import Prediction
from ..certification.smoothing import SmoothedClassifier, selection_draws
from ..checkpoints import EDMUNet2DModel, read_checkpoints
from ..common.checks import check_kind, check_seed, check_sigma
from ..common.images import check_pixel_range
from ..common.noise import resolve_seed
from ..diffusion.calibration import calibrate_levels, check_levels, levels_key
from ..diffusion.classifier import NoisedDiffusionClassifier, default_levels
from ..diffusion.denoiser import Denoiser
from ..diffusion.likelihoods import get_likelihood
from ..diffusion.margins import certify_margin, check_margin_settings, replay_margin, with_bounded_losses
from ..diffusion.noise_levels import NoiseLevels
from .base import SharedPipeline
from .inputs import Image, Images, to_pixel_batch


@dataclass
class ClassifierOutput(BaseOutput):
    """What the pipeline returns for a batch of N images and K classes.

    Args:
        labels: Class indices, N of them.
        probs: Softmax of the logits, shape `(N, K)`, float32, on the CPU. With `elbo` weights an estimate of the
            posterior under a uniform prior; its confidence is not calibrated, and it is no certificate.
        logits: Minus the weighted denoising losses, shape `(N, K)`.
    """

    labels: list[int]
    probs: torch.Tensor
    logits: torch.Tensor


class NoisedDiffusionClassifierPipeline(SharedPipeline):
    """A class-conditional diffusion model as a classifier with provable l2 robustness (Chen et al., arXiv:2402.02316).

    Args:
        unet: Class-conditional network in pixel space. A `UNet2DConditionModel` has no cross-attention.
        scheduler: Scheduler that it was trained with, or an equivalent one; only its noise levels are used.
        unconditional_unet: Network without classes as the unconditional denoiser of APNDC. Default: the `null_class`,
            or, without one, the mean over the classes.
        id2label: Names of the classes by index. Default: their numbers.
        null_class: Index of the embedding row for "no class", which must be the last; `None` if there is none.
        levels: Noise levels by smoothing sigma and method, as `calibrate` adds them:
            `{"0.25": {"apndc": NoiseLevels(...).to_dict()}, ...}`. Others take `default_levels`.

    Raises:
        ValueError: The network has no classes, the scheduler no known noise level, or `id2label` not one name per
            class.
    """

    model_cpu_offload_seq = "unconditional_unet->unet"
    _optional_components = ["unconditional_unet"]

    def __init__(
        self,
        unet: UNet2DModel | UNet2DConditionModel | EDMUNet2DModel,
        scheduler: SchedulerMixin,
        unconditional_unet: UNet2DModel | UNet2DConditionModel | EDMUNet2DModel | None = None,
        id2label: dict | None = None,
        null_class: int | None = None,
        levels: dict | None = None,
    ):
        super().__init__()
        id2label = None if id2label is None else with_integer_labels(id2label)
        num_classes = len(id2label) if id2label else None
        denoiser = Denoiser(unet, scheduler, num_classes, null_class, unconditional_unet)
        if id2label is not None and sorted(id2label) != list(range(denoiser.num_classes)):
            raise ValueError(
                f"`id2label` has the keys {sorted(id2label)}; accepted are 0 to {denoiser.num_classes - 1}, each once."
            )
        if levels is not None:
            check_levels(levels)
        self.register_modules(unet=unet, scheduler=scheduler, unconditional_unet=unconditional_unet)
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

        The published class-conditional networks were trained without label dropout and know no "no class". Give the
        unconditional checkpoint beside them, or APNDC takes the mean over the classes, one evaluation for each.

        Args:
            path: Class-conditional checkpoint: a published `.pkl`, of which nothing is run, or a state dict (`.pt`,
                `.safetensors`) with a JSON file beside it, as `diffusers_ndc.checkpoints.read_checkpoint` describes.
            unconditional: Checkpoint without classes of the same preconditioning and image size.
            id2label: Names of the classes by index. Default: their numbers.
            null_class: The number of classes, if the label of all zeros was trained as "no class" (which is known of
                a network with label dropout in its arguments). Default: no null class.

        Raises:
            FileNotFoundError: A file does not exist.
            ValueError: A file is damaged, holds something else, or does not go with the other arguments.
        """
        unet, scheduler, unconditional_unet, null_class = read_checkpoints(path, unconditional, null_class)
        return cls(unet, scheduler, unconditional_unet, id2label, null_class)

    @property
    def denoiser(self) -> Denoiser:
        """The components, as they are now, as `h(x_sigma, sigma, y)`."""
        id2label = self.config.id2label
        return Denoiser(
            self.unet, self.scheduler, id2label and len(id2label), self.config.null_class, self.unconditional_unet
        )

    def classifier(
        self,
        sigma: float = 0.0,
        method: str | None = None,
        levels: NoiseLevels | None = None,
        batch_size: int = 64,
        seed: int | None = None,
    ) -> NoisedDiffusionClassifier:
        """The classifier as a `torch.nn.Module` from images `(N, C, H, W)` in pixel units to logits `(N, K)`.

        It shares the pipeline's networks and goes wherever a classifier is wanted: attacks, smoothing, other
        libraries. Logits are differentiable where gradients are on. With a `seed` it is a fixed function of the image.

        Args:
            sigma: Noise that the images carry, pixel units; 0 for clean images.
            method: `dc`, `epndc`, `apndc` or `apndc-clean`. Default: `dc` for clean images, else `apndc`.
            levels: Noise levels and weights. Default: the model's own for this sigma, else `default_levels`.
            batch_size: (image, class, level) triples per network evaluation; peak memory depends on it alone.
            seed: If given, the seed of the noise that every image meets.

        Raises:
            TypeError, ValueError: An argument is not as described, or beyond what the model was trained for.
        """
        check_sigma(sigma)
        method = get_likelihood(method, sigma).name
        saved = (self.config.levels or {}).get(levels_key(sigma), {}).get(method)
        if levels is None and saved is not None:
            levels = NoiseLevels.from_dict(saved)
        return NoisedDiffusionClassifier(self.denoiser, sigma, method, levels, batch_size, seed)

    def calibrate(
        self,
        images: Images,
        labels: Sequence[int],
        sigma: float = 0.25,
        num_levels: int = 12,
        method: str | None = None,
        candidates: NoiseLevels | None = None,
        quantile: float | None = 0.998,
        batch_size: int = 64,
        seed: int = 0,
    ) -> NoiseLevels:
        """Choose a few noise levels, their weights and a sifting rule on labelled images; keep them with the model.

        From then on they are the default for this sigma and method, and `save_pretrained` saves them. Fewer levels,
        and fewer classes at most of them, make every later answer cheaper. The images must not be ones that are
        certified or tested afterwards, if accuracies are to mean anything; the certificates stay sound whatever is
        chosen.

        Args:
            images: Clean labelled images, a few hundred at least, as for a call of the pipeline.
            labels: Their class indices.
            sigma: Smoothing noise that the levels are for, pixel units; 0 for clean images.
            num_levels: How many levels to keep at most. Where classes are sifted, few copies reach the later ones, so
                that more levels cost little.
            method: Method that the levels are for. Default: `dc` for clean images, else `apndc`.
            candidates: Levels to choose from, and the weights that theirs are shrunk towards. Default:
                `default_levels`.
            quantile: Classes are sifted from level to level: after each one those are dropped whose loss exceeds the
                best one's by more than the true class's does in this share of the noisy copies. `None`: no sifting.
            batch_size: (image, class, level) triples per network evaluation.
            seed: Seed of the noise.

        Raises:
            TypeError, ValueError: An argument is not as described, or beyond what the model was trained for.
            FloatingPointError: A loss is not finite, as by an overflow in half precision.
        """
        check_sigma(sigma)
        candidates = default_levels(sigma, self.denoiser) if candidates is None else candidates
        classifier = self.classifier(sigma, method, candidates, batch_size)
        batch, _ = self._preprocess(images, classifier)
        check_pixel_range(batch)
        check_seed(seed)
        with self.progress_bar(total=len(batch)) as bar:
            chosen = calibrate_levels(classifier, batch, labels, num_levels, quantile, seed, bar.update)
        self.maybe_free_model_hooks()
        table = {key: dict(methods) for key, methods in (self.config.levels or {}).items()}
        table.setdefault(levels_key(sigma), {})[classifier.likelihood.name] = chosen.to_dict()
        self.register_to_config(levels=table)
        return chosen

    @torch.no_grad()
    def __call__(
        self,
        images: Images,
        sigma: float = 0.0,
        method: str | None = None,
        levels: NoiseLevels | None = None,
        batch_size: int = 64,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        return_dict: bool = True,
    ) -> ClassifierOutput | tuple:
        """Classify images: clean ones (`sigma=0`, the diffusion classifier), or ones that carry Gaussian noise.

        Args:
            images: PIL images, numpy arrays `(H, W[, C])` or `(N, H, W, C)`, tensors `(C, H, W)` or `(N, C, H, W)`, or
                a list of them; uint8, or floats in pixel units ([0, 1] plus the noise). PIL images are resized to the
                network.
            sigma: Standard deviation of the Gaussian noise that the images carry, pixel units.
            method: `dc`, `epndc`, `apndc` or `apndc-clean`. Default: `dc` for clean images, else `apndc`.
            levels: Noise levels and weights. Default: the model's own for this sigma, else `default_levels`.
            batch_size: (image, class, level) triples per network evaluation.
            generator: Source of the seed. An image's noise depends on seed and image, not on its place in a batch.
            seed: The seed itself, instead of a `generator`. Default: from the operating system's entropy.
            return_dict: Whether to return a `ClassifierOutput` or a plain tuple of its three values.

        Raises:
            TypeError, ValueError: An argument is not as described, or beyond what the model was trained for.
            FloatingPointError: A loss is not finite, as by an overflow in half precision.
        """
        classifier = self.classifier(sigma, method, levels, batch_size)
        seed = resolve_seed(generator, seed)
        batch, _ = self._preprocess(images, classifier)
        check_pixel_range(batch, sigma)
        rows = {}
        with self.progress_bar(total=len(batch)) as bar:
            for place, result in classifier.classify_each(batch, seed):
                rows[place] = result.logits
                bar.update()
        self.maybe_free_model_hooks()
        logits = torch.stack([rows[index] for index in range(len(batch))]).float().cpu()
        output = ClassifierOutput(logits.argmax(dim=1).tolist(), logits.softmax(dim=1), logits)
        return output if return_dict else output.to_tuple()

    def predict(
        self,
        images: Images,
        sigma: float = 0.25,
        n: int = 100,
        alpha: float = 0.001,
        method: str | None = None,
        levels: NoiseLevels | None = None,
        batch_size: int = 64,
        generator: torch.Generator | None = None,
        seed: int | None = None,
    ) -> Prediction | list[Prediction]:
        """Class of the smoothed classifier at clean images, or an abstention: PREDICT of Cohen et al. 2019.

        Args:
            images: Clean images, as for a call of the pipeline.
            sigma: Standard deviation of the smoothing noise, pixel units, above 0.
            n: Number of noisy copies of each image.
            alpha: Probability with which a prediction may differ from the smoothed classifier's.
            method: As for a call of the pipeline, and so the others.

        Returns:
            One `Prediction` for a single image, else a list of them.

        Raises:
            TypeError, ValueError: An argument is not as described, or beyond what the model was trained for.
            FloatingPointError: A loss is not finite, as by an overflow in half precision.
        """
        settings = {"n": n, "alpha": alpha}
        return self._smooth("predict", images, sigma, method, levels, batch_size, generator, seed, None, **settings)

    def certify(
        self,
        images: Images,
        sigma: float = 0.25,
        n0: int | None = None,
        n: int = 10_000,
        alpha: float = 0.001,
        method: str | None = None,
        levels: NoiseLevels | None = None,
        batch_size: int = 64,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        radii: Sequence[float] | None = None,
        resolution: float | None = None,
        bound: str | None = None,
        grid: int | None = None,
    ) -> Certificate | LipschitzCertificate | list[Certificate] | list[LipschitzCertificate]:
        """Class and proved l2 radius of the smoothed classifier at clean images: CERTIFY of Cohen et al. 2019.

        With probability at least `1 - alpha` for each image, no perturbation of an l2 norm below the radius changes
        the smoothed classifier's class. The radius is in pixel units and, where a PIL image was resized to the
        network's size, in the resized image.

        With `sigma=0` (and the method `dc`) it is the diffusion classifier itself that is certified, without
        smoothing, by the Lipschitz constant of its losses: `LipschitzCertificate`. That radius is smaller, and no
        noise is in the way of the prediction. Latent models have no such constant.

        Args:
            images: Clean images, as for a call of the pipeline.
            sigma: Standard deviation of the smoothing noise, pixel units; 0: none.
            n0: Number of noisy copies that choose the candidate class, or fewer if they settle it; 0: the leader is
                certified, at an `alpha` split over the classes. Default: 100, or 10 with `radii` or `resolution`.
            n: Number of further noisy copies that bound its probability; with `radii` or `resolution`, the most that
                are spent.
            alpha: Probability with which a certificate may be wrong.
            method: As for a call of the pipeline, and so the others.
            levels: Noise levels and weights. Default: the model's own for this sigma, else `default_levels`; with
                `sigma=0`, `lipschitz.LEVELS`. There all classes are scored at all levels, and losses are clipped
                where the levels have no `cap`.
            radii: If given, an image is done as soon as each of these radii (pixel units, ascending; 0 for the label
                alone) is proved or given up, by a bound that allows for it.
            resolution: If given instead, an image is done when further copies would hardly raise its radius by more
                than this (pixel units).
            bound: Name of the bound, one of `diffusers_ndc.certification.bounds.BOUNDS`. Default: `clopper-pearson`, or
                `mixture` with `radii` or `resolution`.
            grid: For images of 8 bits: draw the noise on a grid with so many steps between two of their values (16 is
                a good one), so that rounding in floating point cannot break the proof; see `SmoothedClassifier`.

        Returns:
            One `Certificate` for a single image, else a list of them.

        Raises:
            TypeError, ValueError: An argument is not as described, or beyond what the model was trained for.
            FloatingPointError: A loss is not finite, as by an overflow in half precision.
        """
        check_sigma(sigma)
        if sigma == 0:
            beside = {"radii": radii, "resolution": resolution, "bound": bound, "grid": grid}
            return self._certify_margins(
                images, n0, n, alpha, method, levels, batch_size, resolve_seed(generator, seed), beside
            )
        n0 = selection_draws(n0, radii, resolution)
        settings = {"n0": n0, "n": n, "alpha": alpha, "radii": radii, "resolution": resolution, "bound": bound}
        return self._smooth("certify", images, sigma, method, levels, batch_size, generator, seed, grid, **settings)

    def certify_iter(
        self,
        image: Image,
        sigma: float = 0.25,
        n0: int = 20,
        n: int = 10_000,
        alpha: float = 0.001,
        method: str | None = None,
        levels: NoiseLevels | None = None,
        batch_size: int = 64,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        grid: int | None = None,
    ) -> Iterator[Certificate]:
        """A growing certificate of one clean image: one after every few noisy copies, on all votes so far.

        With probability at least `1 - alpha` *all* of them are true at once, so that one may watch them, stop at any
        time, and keep the best.

        Args:
            image: One clean image, as for a call of the pipeline.
            sigma: As for `certify`, and so the others; `n` is the most noisy copies that are spent.

        Raises:
            TypeError, ValueError: An argument is not as described, or beyond what the model was trained for.
            FloatingPointError: A loss is not finite, as by an overflow in half precision.
        """
        classifier = self.classifier(sigma, method, levels, batch_size)
        tensor = self._preprocess_one(image, classifier)
        seed = resolve_seed(generator, seed)
        found = SmoothedClassifier(classifier, sigma, grid).certify_iter(tensor, n0, n, alpha, seed)

        def certificates():
            try:
                yield from found
            finally:
                self.maybe_free_model_hooks()

        return certificates()

    def replay(
        self, image: Image, certificate: Certificate | LipschitzCertificate, batch_size: int = 64
    ) -> Certificate | LipschitzCertificate:
        """Make the draws of a certificate again: the one that they give now, to be compared by `agrees`.

        The base classifier is made as the certificate describes it. On other hardware of the same kind, or in other
        batches, a vote may move where two logits tie to within round-off.

        Args:
            image: The image that it is about, as for a call of the pipeline.
            certificate: What `certify` returned.
            batch_size: (image, class, level) triples per network evaluation.

        Raises:
            TypeError, ValueError: `image` is not as described; or `certificate` does not follow from its own votes,
                names no seed, is about another image or model, or of draws on another kind of device.
            FloatingPointError: A loss is not finite.
        """
        check_kind("certificate", certificate, Certificate, LipschitzCertificate)
        sigma, draws = 0.0, certificate.n0 + certificate.n
        if isinstance(certificate, Certificate):
            sigma, draws = certificate.sigma, certificate.votes
        try:
            settings = certificate.base_classifier
            inner = settings["classifier"] if settings["method"] == "dds" else settings
            levels = NoiseLevels.from_dict(inner["levels"])
            classifier = self.classifier(sigma, settings["method"], levels, batch_size, inner["seed"])
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"`certificate` has no such base classifier as this pipeline makes: {certificate.base_classifier}."
            ) from error
        tensor = self._preprocess_one(image, classifier)
        again: Certificate | LipschitzCertificate
        with self.progress_bar(total=draws) as bar:
            if isinstance(certificate, LipschitzCertificate):
                again = replay_margin(classifier, tensor, certificate, bar.update)
            else:
                smoothed = SmoothedClassifier(classifier, sigma, certificate.grid)
                again = smoothed.replay(tensor, certificate, bar.update)
        self.maybe_free_model_hooks()
        return again

    def _smooth(self, algorithm, images, sigma, method, levels, batch_size, generator, seed, grid, **settings):
        classifier = self.classifier(sigma, method, levels, batch_size)
        smoothed = SmoothedClassifier(classifier, sigma, grid)
        seed = resolve_seed(generator, seed)
        batch, single = self._preprocess(images, classifier)
        draws = {name: settings[name] for name in ("n0", "n") if settings.get(name) is not None}
        smoothed.check_images(batch)
        smoothed.check_settings(settings["alpha"], seed, **draws)
        with self.progress_bar(total=len(batch) * sum(draws.values())) as bar:
            results = getattr(smoothed, algorithm)(batch, seed=seed, on_copies=bar.update, **settings)
        self.maybe_free_model_hooks()
        return results[0] if single else results

    def _certify_margins(self, images, n0, n, alpha, method, levels, batch_size, seed, beside):
        """Certificates without smoothing."""
        given = sorted(name for name, value in beside.items() if value is not None)
        if given:
            raise ValueError(f"`{given[0]}` goes with smoothing; accepted with sigma=0 is None.")
        classifier = self.classifier(
            0.0, method, with_bounded_losses(LEVELS if levels is None else levels), batch_size
        )
        n0 = 20 if n0 is None else n0
        check_margin_settings(classifier, n0, n, alpha, seed)
        batch, single = self._preprocess(images, classifier)
        check_pixel_range(batch)
        with self.progress_bar(total=len(batch) * (n0 + n)) as bar:
            found = [certify_margin(classifier, image, n0, n, alpha, seed, bar.update) for image in batch]
        self.maybe_free_model_hooks()
        return found[0] if single else found

    def _preprocess(self, images: Images, classifier: NoisedDiffusionClassifier) -> tuple[torch.Tensor, bool]:
        batch, single = to_pixel_batch(images, classifier.denoiser.image_channels, classifier.denoiser.image_size)
        classifier.denoiser.check_images(batch)
        return batch.to(self._execution_device), single

    def _preprocess_one(self, image: Image, classifier: NoisedDiffusionClassifier) -> torch.Tensor:
        batch, single = self._preprocess(image, classifier)
        if not single:
            raise ValueError(f"`image` is a batch of {len(batch)}; accepted is a single image.")
        return batch[0]


def with_integer_labels(id2label: dict) -> dict[int, str]:
    """`id2label` with the whole numbers back that JSON made strings of."""
    try:
        names = {int(label): str(name) for label, name in id2label.items()}
    except (ArithmeticError, AttributeError, TypeError, ValueError):
        names = {}
    if not names:
        raise ValueError(f"`id2label` is {id2label!r}; accepted is a dictionary of class index to name.")
    return names

"""Certificates without smoothing: draws of the diffusion classifier's margins, as a record that can be checked.

`diffusion.margins` draws the margins, `certification.lipschitz` proves a radius from them (Chen et al.,
arXiv:2402.02316); neither knows the other.
"""

from collections.abc import Callable

import torch

from ..certification.bounds import MAX_N, check_alpha
from ..certification.lipschitz import LipschitzCertificate
from ..common.checks import BatchSize, check_integer, check_seed
from ..common.images import check_pixel_range, content_hash
from ..common.noise import resolve_seed
from ..diffusion.classifier import NoisedDiffusionClassifier
from ..diffusion.margins import UNSMOOTHED_LEVELS, draw_margins, with_bounded_losses
from ..diffusion.noise_levels import NoiseLevels
from .base import ClassifierPipeline
from .inputs import Images


class UnsmoothedPipeline(ClassifierPipeline):
    """A classifier pipeline that certifies its diffusion classifier by itself."""

    def certify_unsmoothed(
        self,
        images: Images,
        n0: int = 20,
        n: int = 10_000,
        alpha: float = 0.001,
        levels: NoiseLevels | None = None,
        batch_size: BatchSize = 64,
        generator: torch.Generator | None = None,
        seed: int | None = None,
    ) -> LipschitzCertificate | list[LipschitzCertificate]:
        """Class and proved l2 radius of the diffusion classifier itself, without smoothing (Chen et al. 2024).

        The losses of `dc` are clipped and capped, so that the margin of two classes is a Lipschitz function of the
        image, whatever the network (arXiv:2402.02316; `certification.lipschitz`). With probability at least
        `1 - alpha` for each image, no perturbation of an l2 norm below the radius changes the class of the smallest
        expected loss. This is another theorem about another classifier than `certify`: its radius is smaller, and the
        prediction is made without noise on the image. The radius is in pixel units and, if a PIL image was resized to
        the network's size, about the resized image. Latent models have no such constant.

        Args:
            images: Clean images: PIL images, numpy arrays `(H, W[, C])` or `(N, H, W, C)`, tensors `(C, H, W)` or
                `(N, C, H, W)`, or a list of them; uint8, or floats in [0, 1]. PIL images are resized to the network's
                size.
            n0: Number of draws that choose the candidate class, at least 1. A draw scores all classes at all levels
                with fresh noise.
            n: Number of further draws that bound the margins, at least 1.
            alpha: Probability with which a certificate may be wrong.
            levels: Noise levels and weights. All classes are scored at every level, whatever their sifting rule, and
                levels without a `cap` get the cap 4 (clipped losses). Default: `margins.UNSMOOTHED_LEVELS`.
            batch_size: (image, class, level) triples per network evaluation; peak memory depends on it alone. "auto":
                found by a short trial on the device, once for each network and image size.
            generator: Source of the seed. An image's noise depends on seed and image, not on its place in a batch.
            seed: The seed itself, instead of a `generator`. Default: from the operating system's entropy.

        Returns:
            One `LipschitzCertificate` for a single image, else a list of them.

        Raises:
            TypeError, ValueError: An argument is not as described, or beyond what the model was trained for; or the
                model is a latent one.
            FloatingPointError: A loss is not finite, for example after an overflow in half precision.

        Example:
            >>> certificate = pipe.certify_unsmoothed(image, n=1000, seed=0)  # doctest: +SKIP
            >>> print(certificate.label, certificate.radius, certificate.verify())  # doctest: +SKIP
        """
        seed = resolve_seed(generator, seed)
        levels = with_bounded_losses(UNSMOOTHED_LEVELS if levels is None else levels)
        classifier = self._diffusion_classifier(0.0, "dc", levels, batch_size)
        check_unsmoothed(classifier, n0, n, alpha, seed)
        batch, single = self._preprocess(images, classifier)
        check_pixel_range(batch)
        with self.progress_bar(total=len(batch) * (n0 + n)) as bar:
            certificates = [certify_image(classifier, image, n0, n, alpha, seed, bar.update) for image in batch]
        self.maybe_free_model_hooks()
        return certificates[0] if single else certificates


def check_unsmoothed(classifier: NoisedDiffusionClassifier, n0: int, n: int, alpha: float, seed: int) -> None:
    """Raise unless `certify_image` accepts these arguments.

    Raises:
        TypeError, ValueError: The classifier is a latent one, or another argument is out of range.
    """
    if classifier.denoiser.encoder is not None:
        raise ValueError(
            "The model of `certify_unsmoothed` must denoise pixels, got a latent model: an encoder may be arbitrarily "
            "steep, and the Lipschitz constant is that of losses on pixels. With a `pixel_unet` call `certify`."
        )
    check_alpha(alpha)
    check_seed(seed)
    check_integer("n0", n0, 1, MAX_N, "a number of draws")
    check_integer("n", n, 1, MAX_N, "a number of draws")


def certify_image(
    classifier: NoisedDiffusionClassifier,
    image: torch.Tensor,
    n0: int,
    n: int,
    alpha: float,
    seed: int,
    on_draws: Callable[[int], object] | None = None,
) -> LipschitzCertificate:
    """Class and radius of the diffusion classifier at a clean image, by the Lipschitz constant of its margins.

    Args:
        classifier: With the method `dc`, in pixel space, and levels as `with_bounded_losses` returns them.
        image: Shape `(C, H, W)`, values in [0, 1].
        n0: Number of draws that choose the candidate, at least 1.
        n: Number of further draws, at least 1.
        alpha: Probability with which the certificate may be wrong.
        seed: Seed of all draws.
        on_draws: Called with the number of new draws after each call of the classifier.

    Raises:
        TypeError, ValueError: An argument is not as described.
        FloatingPointError: A loss is not finite.
    """
    check_unsmoothed(classifier, n0, n, alpha, seed)
    scores = draw_margins(classifier, image, n0, n, alpha, seed, on_draws)
    return LipschitzCertificate.from_scores(
        alpha=float(alpha),
        n0=n0,
        n=n,
        selection_losses=scores.selection_losses,
        score_sums=scores.score_sums,
        score_squares=scores.score_squares,
        num_classes=scores.num_classes,
        evaluations=scores.evaluations,
        **_origin(classifier, image, seed),
    )


def replay_image(
    classifier: NoisedDiffusionClassifier,
    image: torch.Tensor,
    certificate: LipschitzCertificate,
    on_draws: Callable[[int], object] | None = None,
) -> LipschitzCertificate:
    """Make the draws of a certificate again, to compare the result with the certificate by `agrees`.

    Args:
        classifier: With the settings that the certificate states.
        image: The certified image, shape `(C, H, W)`, values in [0, 1].
        certificate: The certificate to replay.
        on_draws: Called with the number of new draws after each call of the classifier.

    Returns:
        The certificate that the draws give now.

    Raises:
        ValueError: `certificate` does not follow from its own scores, has no seed, or is about another image or
            classifier.
        FloatingPointError: A loss is not finite.
    """
    seed = certificate.seed_of_draws
    certificate.check_origin(_origin(classifier, image, seed))
    return certify_image(classifier, image, certificate.n0, certificate.n, certificate.alpha, seed, on_draws)


def _origin(classifier: NoisedDiffusionClassifier, image: torch.Tensor, seed: int) -> dict:
    """The fields of a certificate that say which draws it rests on."""
    return {
        "seed": seed,
        "image_hash": content_hash(image),
        "device": image.device.type,
        "pixels": image.numel(),
        "base_classifier": classifier.settings,
    }

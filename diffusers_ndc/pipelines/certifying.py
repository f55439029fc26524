"""What a classifier pipeline proves about its answers: PREDICT, CERTIFY, and their replay."""

from collections.abc import Iterator, Sequence

import torch

from ..certification.certificate import Certificate
from ..certification.lipschitz import LipschitzCertificate
from ..certification.procedures import Prediction, Sampling, check_predicting
from ..certification.smoothing import SmoothedClassifier
from ..common.checks import BatchSize, check_kind, check_sigma
from ..common.noise import resolve_seed
from ..diffusion.noise_levels import NoiseLevels
from .base import Sift, recorded_sift
from .inputs import Image, Images
from .unsmoothed import UnsmoothedPipeline, replay_image


NOT_OURS = "`certificate` must be about a base classifier that this pipeline makes, got {settings}."


class CertifyingPipeline(UnsmoothedPipeline):
    """A classifier pipeline that certifies: its classifier smoothed by noise on the pixels, or by itself."""

    def predict(
        self,
        images: Images,
        sigma: float = 0.25,
        n: int = 100,
        alpha: float = 0.001,
        method: str | None = None,
        levels: NoiseLevels | None = None,
        batch_size: BatchSize = 64,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        sift: Sift | None = None,
    ) -> Prediction | list[Prediction]:
        """Class of the smoothed classifier at clean images, or an abstention (PREDICT of Cohen et al. 2019).

        With probability at least `1 - alpha` for each image, the prediction is the smoothed classifier's class or an
        abstention (arXiv:1902.02918, Proposition 1).

        Args:
            images: Clean images: PIL images, numpy arrays `(H, W[, C])` or `(N, H, W, C)`, tensors `(C, H, W)` or
                `(N, C, H, W)`, or a list of them; uint8, or floats in [0, 1]. PIL images are resized to the network's
                size.
            sigma: Standard deviation of the smoothing noise, pixel units, above 0.
            n: Number of noisy copies of each image.
            alpha: Probability with which a prediction may differ from the smoothed classifier's.
            method: `apndc`, `epndc` or `apndc-clean` (a latent model: `dds`), or `features` (the sifter alone).
                Default: `apndc` (`dds`).
            levels: Noise levels and weights. Default: the levels that were calibrated for this sigma and method, else
                `default_levels`.
            batch_size: (image, class, level) triples per network evaluation; peak memory depends on it alone. "auto":
                found by a short trial on the device, once for each network and image size.
            generator: Source of the seed. An image's noise depends on seed and image, not on its place in a batch.
            seed: The seed itself, instead of a `generator`. Default: from the operating system's entropy.
            sift: What the pipeline's `sifter` does for each copy: choose its candidate classes ("candidates"), count
                in the loss as well ("scores", which makes the decision partly discriminative), or nothing (False).
                Default: "candidates" if it was fitted for this sigma and method and no `levels` are given, else False.

        Returns:
            One `Prediction` for a single image, else a list of them.

        Raises:
            TypeError, ValueError: An argument is not as described, or beyond what the model was trained for.
            FloatingPointError: A loss is not finite, for example after an overflow in half precision.

        Example:
            >>> pipe.predict(image, sigma=0.25, seed=0).label  # doctest: +SKIP
            7
        """
        classifier = self.classifier(sigma, method, levels, batch_size, sift=sift)
        smoothed = SmoothedClassifier(classifier, sigma)
        seed = resolve_seed(generator, seed)
        batch, single = self._preprocess(images, classifier)
        smoothed.check_images(batch)
        check_predicting(n, alpha)
        with self.progress_bar(total=len(batch) * n) as bar:
            predictions = smoothed.predict(batch, n, alpha, seed, bar.update)
        self.maybe_free_model_hooks()
        return predictions[0] if single else predictions

    def certify(
        self,
        images: Images,
        sigma: float = 0.25,
        n0: int | None = None,
        n: int = 10_000,
        alpha: float = 0.001,
        method: str | None = None,
        levels: NoiseLevels | None = None,
        batch_size: BatchSize = 64,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        radii: Sequence[float] | None = None,
        resolution: float | None = None,
        bound: str | None = None,
        grid: int | None = None,
        sift: Sift | None = None,
        max_copies_per_radius: float | None = None,
        max_evaluations: int | None = None,
    ) -> Certificate | list[Certificate]:
        """Class and proved l2 radius of the smoothed classifier at clean images (CERTIFY of Cohen et al. 2019).

        With probability at least `1 - alpha` for each image, no perturbation of an l2 norm below the radius changes
        the smoothed classifier's class (arXiv:1902.02918, Theorem 1). The radius is in pixel units. If a PIL image was
        resized to the network's size, it is about the resized image; with a latent model, about the image that
        `pixel_unet` sees.

        Args:
            images: Clean images: PIL images, numpy arrays `(H, W[, C])` or `(N, H, W, C)`, tensors `(C, H, W)` or
                `(N, C, H, W)`, or a list of them; uint8, or floats in [0, 1]. PIL images are resized to the network's
                size.
            sigma: Standard deviation of the smoothing noise, pixel units, above 0. Without smoothing:
                `certify_unsmoothed`.
            n0: Number of noisy copies that choose the candidate class, or fewer if they settle the choice. 0: the
                leading class is certified, at an `alpha` split over the classes. Default: 100, or 10 with `radii`,
                `resolution` or `max_evaluations`.
            n: Number of further noisy copies that bound the candidate's probability; with `radii`, `resolution` or
                `max_evaluations`, the largest number.
            alpha: Probability with which a certificate may be wrong.
            method: `apndc`, `epndc` or `apndc-clean` (a latent model: `dds`), or `features` (the sifter alone).
                Default: `apndc` (`dds`).
            levels: Noise levels and weights. Default: the levels that were calibrated for this sigma and method, else
                `default_levels`.
            batch_size: (image, class, level) triples per network evaluation; peak memory depends on it alone. "auto":
                found by a short trial on the device, once for each network and image size.
            generator: Source of the seed. An image's noise depends on seed and image, not on its place in a batch.
            seed: The seed itself, instead of a `generator`. Default: from the operating system's entropy.
            radii: If given, an image is finished as soon as each of these radii (pixel units, ascending; 0 for the
                label alone) is proved or given up, by a bound that allows for this early stop.
            resolution: If given, an image is finished when further copies would hardly raise its radius by more than
                this (pixel units).
            bound: Name of the bound, one of `diffusers_ndc.certification.BOUNDS`. Default: `clopper-pearson`, or
                `mixture` with `radii`, `resolution` or `max_evaluations`.
            grid: For 8-bit images: draw the noise on a grid with this many steps between two of their values, so that
                rounding in floating point cannot break the proof; see `SmoothedClassifier`. 16 is a good choice.
            sift: What the pipeline's `sifter` does for each copy: choose its candidate classes ("candidates"), count
                in the loss as well ("scores", which makes the decision partly discriminative), or nothing (False).
                Default: "candidates" if it was fitted for this sigma and method and no `levels` are given, else False.
            max_copies_per_radius: With `radii`, an image is given up when one more radius would cost more noisy copies
                than this, in expectation. `None`: a radius in reach may cost any number up to `n`.
            max_evaluations: Network evaluations for each image, or `None`. When they are spent, it is finished with
                what is proved by then. They are counted every few copies, so that the last ones may go beyond, and at
                least the `n0` and 20 further copies are made.

        Returns:
            One `Certificate` for a single image, else a list of them.

        Raises:
            TypeError, ValueError: An argument is not as described, or beyond what the model was trained for.
            FloatingPointError: A loss is not finite, for example after an overflow in half precision.

        Example:
            >>> certificate = pipe.certify(image, sigma=0.25, n=1000, seed=0)  # doctest: +SKIP
            >>> print(certificate.label, certificate.radius, certificate.verify())  # doctest: +SKIP
        """
        sigma = check_sigma(sigma)
        if sigma == 0:
            raise ValueError(
                f"`sigma` must be above 0, got {sigma}. For the diffusion classifier without smoothing call "
                "`certify_unsmoothed`."
            )
        classifier = self.classifier(sigma, method, levels, batch_size, sift=sift)
        smoothed = SmoothedClassifier(classifier, sigma, grid)
        seed = resolve_seed(generator, seed)
        batch, single = self._preprocess(images, classifier)
        smoothed.check_images(batch)
        limits = (max_copies_per_radius, max_evaluations)
        sampling = Sampling.with_defaults(n0, n, alpha, bound, radii, resolution, *limits)
        sampling.check(sigma, classifier.num_classes)
        with self.progress_bar(total=len(batch) * (sampling.n0 + sampling.n)) as bar:
            certificates = smoothed.certify(batch, n0, n, alpha, seed, radii, resolution, bound, bar.update, *limits)
        self.maybe_free_model_hooks()
        return certificates[0] if single else certificates

    def certify_iter(
        self,
        image: Image,
        sigma: float = 0.25,
        n0: int = 20,
        n: int = 10_000,
        alpha: float = 0.001,
        method: str | None = None,
        levels: NoiseLevels | None = None,
        batch_size: BatchSize = 64,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        grid: int | None = None,
        sift: Sift | None = None,
    ) -> Iterator[Certificate]:
        """A growing certificate of one clean image: one after every few noisy copies, on all votes so far.

        With probability at least `1 - alpha` *all* of them are true at once (`bounds.mixture_lower`): one may watch
        them, stop at any time, and keep the best one.

        Args:
            image: One clean image: a PIL image, numpy array `(H, W[, C])` or tensor `(C, H, W)`; uint8, or floats in
                [0, 1]. A PIL image is resized to the network's size.
            sigma: Standard deviation of the smoothing noise, pixel units, above 0.
            n0: Number of noisy copies that choose the candidate class, or fewer if they settle the choice. 0: each
                certificate is for the class that leads then, at an `alpha` split over the classes.
            n: Largest number of further noisy copies.
            alpha: Probability with which one of the certificates may be wrong.
            method: `apndc`, `epndc` or `apndc-clean` (a latent model: `dds`), or `features` (the sifter alone).
                Default: `apndc` (`dds`).
            levels: Noise levels and weights. Default: the levels that were calibrated for this sigma and method, else
                `default_levels`.
            batch_size: (image, class, level) triples per network evaluation; peak memory depends on it alone. "auto":
                found by a short trial on the device, once for each network and image size.
            generator: Source of the seed.
            seed: The seed itself, instead of a `generator`. Default: from the operating system's entropy.
            grid: For 8-bit images: draw the noise on a grid with this many steps between two of their values, so that
                rounding in floating point cannot break the proof; see `SmoothedClassifier`. 16 is a good choice.
            sift: What the pipeline's `sifter` does for each copy: choose its candidate classes ("candidates"), count
                in the loss as well ("scores", which makes the decision partly discriminative), or nothing (False).
                Default: "candidates" if it was fitted for this sigma and method and no `levels` are given, else False.

        Returns:
            An iterator over the certificates. The arguments are checked at once.

        Raises:
            TypeError, ValueError: An argument is not as described, or beyond what the model was trained for.
            FloatingPointError: A loss is not finite, for example after an overflow in half precision.

        Example:
            >>> for certificate in pipe.certify_iter(image, sigma=0.25):  # doctest: +SKIP
            ...     if certificate.radius > 0.5:
            ...         break
        """
        classifier = self.classifier(sigma, method, levels, batch_size, sift=sift)
        tensor = self._preprocess_one(image, classifier)
        seed = resolve_seed(generator, seed)
        growing = SmoothedClassifier(classifier, sigma, grid).certify_iter(tensor, n0, n, alpha, seed)

        def certificates():
            try:
                yield from growing
            finally:  # also if the caller stops early
                self.maybe_free_model_hooks()

        return certificates()

    def replay(
        self, image: Image, certificate: Certificate | LipschitzCertificate, batch_size: BatchSize = 64
    ) -> Certificate | LipschitzCertificate:
        """Make the draws of a certificate again, to compare the result with the certificate by `agrees`.

        The base classifier is made as the certificate describes it. On other hardware, or in other batches, a vote may
        move if two logits nearly tie: such copies are listed as `near_ties`, and `agrees` allows for their votes.

        Args:
            image: The certified image: a PIL image, numpy array `(H, W[, C])` or tensor `(C, H, W)`; uint8, or floats
                in [0, 1]. A PIL image is resized to the network's size.
            certificate: The result of `certify`, `certify_unsmoothed` or `certify_iter`.
            batch_size: (image, class, level) triples per network evaluation; peak memory depends on it alone. "auto":
                found by a short trial on the device, once for each network and image size.

        Returns:
            The certificate that the draws give now, of the same kind.

        Raises:
            TypeError, ValueError: `image` is not as described; or `certificate` does not follow from its own votes or
                scores, has no seed, or is about another image or model.
            FloatingPointError: A loss is not finite.

        Example:
            >>> certificate.agrees(pipe.replay(image, certificate))  # doctest: +SKIP
            True
        """
        check_kind("certificate", certificate, Certificate, LipschitzCertificate)
        again: Certificate | LipschitzCertificate
        if isinstance(certificate, LipschitzCertificate):
            again = self._replay_unsmoothed(image, certificate, batch_size)
        else:
            again = self._replay_smoothed(image, certificate, batch_size)
        self.maybe_free_model_hooks()
        return again

    def _replay_smoothed(self, image: Image, certificate: Certificate, batch_size: BatchSize) -> Certificate:
        settings = certificate.base_classifier
        try:
            method = settings["method"]
            scoring = settings["classifier"] if method == "dds" else settings  # the part that scores the classes
            if method == "features":
                classifier = self.classifier(certificate.sigma, method, batch_size=batch_size)
            else:
                levels, sift = NoiseLevels.from_dict(scoring["levels"]), recorded_sift(scoring)
                classifier = self.classifier(certificate.sigma, method, levels, batch_size, scoring["seed"], sift)
        except (KeyError, TypeError) as error:
            raise ValueError(NOT_OURS.format(settings=settings)) from error
        smoothed = SmoothedClassifier(classifier, certificate.sigma, certificate.grid)
        tensor = self._preprocess_one(image, classifier)
        with self.progress_bar(total=certificate.votes) as bar:
            return smoothed.replay(tensor, certificate, bar.update)

    def _replay_unsmoothed(
        self, image: Image, certificate: LipschitzCertificate, batch_size: BatchSize
    ) -> LipschitzCertificate:
        settings = certificate.base_classifier
        try:
            levels = NoiseLevels.from_dict(settings["levels"])
            classifier = self._diffusion_classifier(0.0, settings["method"], levels, batch_size, settings["seed"])
        except (KeyError, TypeError) as error:
            raise ValueError(NOT_OURS.format(settings=settings)) from error
        tensor = self._preprocess_one(image, classifier)
        with self.progress_bar(total=certificate.n0 + certificate.n) as bar:
            return replay_image(classifier, tensor, certificate, bar.update)

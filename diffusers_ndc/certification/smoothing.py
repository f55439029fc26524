"""Randomized smoothing (Cohen et al. 2019, arXiv:1902.02918) of any classifier of images."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from ..common.checks import check_integer, check_kind
from ..common.images import content_hash
from .bounds import MAX_N
from .certificate import Certificate
from .near_ties import near_tie_tolerance
from .procedures import Certify, CertifyEarly, Predict, Prediction, Sampling, check_predicting, growing_certificates
from .recasting import Recast
from .smoothed_base import SmoothedBase
from .voting import Procedure, Votes, draw_seeds


class SmoothedClassifier(SmoothedBase):
    """The classifier `g(x) = argmax_c P[f(x + sigma * eps) = c]`, estimated by votes of a base classifier `f`.

    Every draw is independent. Its smoothing noise, and the noise of a base classifier that draws its own, come from
    seeds that are hashed from (seed, image, purpose, number of the draw), and the draws that select the candidate are
    not used again. Counts therefore depend neither on batch sizes nor on which images are certified together, and `f`
    is one and the same function for all images, as the proof requires. Votes are looked at when all draws up to a
    number have been counted, never as soon as the fast ones are done.

    Args:
        base_classifier: Any callable from images `(N, C, H, W)` to logits `(N, K)`, such as a `torch.nn.Module`, or a
            `BaseClassifier` such as `NoisedDiffusionClassifier`, which decides copies of several images together. It
            is given `x + sigma * eps` as it is: not clipped, not rounded. It must treat the images of a batch
            independently, as a network in evaluation mode does. A callable with randomness of its own is wrapped as
            `CallableClassifier(function, randomized=True)`.
        sigma: Standard deviation of the smoothing noise, pixel units, above 0.
        grid: If given, the classifier that is smoothed is `f(round(x))`, with this many grid steps between two values
            of an 8-bit image, and noise is drawn on that grid (`grid_noise`): certificates of 8-bit images that
            rounding in floating point cannot make false. `f` hardly notices a fine grid; 16 is a good one.

    Raises:
        TypeError: `base_classifier` is not callable, or `sigma` is not a number.
        ValueError: `sigma` is not above 0, or `grid` is not an integer of at least 1, or too fine for this much noise.

    Example:
        >>> def brightness(images):
        ...     score = images.flatten(1).mean(1) - 0.5
        ...     return torch.stack([-score, score], dim=1)
        >>> smoothed = SmoothedClassifier(brightness, sigma=0.25)
        >>> (certificate,) = smoothed.certify(torch.ones(1, 1, 4, 4), n=1000, seed=0)
        >>> certificate.label, round(certificate.radius, 2)
        (1, 0.62)
    """

    def predict(
        self,
        images: torch.Tensor,
        n: int = 100,
        alpha: float = 0.001,
        seed: int | None = None,
        on_copies: Callable[[int], object] | None = None,
    ) -> list[Prediction]:
        """Algorithm PREDICT: the leading class of n votes, or an abstention.

        With probability at least `1 - alpha` for each image, the prediction is `g(x)` or an abstention (Cohen et al.
        2019, Proposition 1).

        Args:
            images: Clean images, shape `(N, C, H, W)`, values in [0, 1].
            n: Number of noisy copies of each image.
            alpha: Error probability.
            seed: Seed of all draws. Default: from the operating system's entropy.
            on_copies: Progress callback, called with the number of noisy copies decided since the last call.

        Raises:
            TypeError, ValueError: An argument is not as described.
            FloatingPointError: A logit of the base classifier is not finite.
        """
        self.check_images(images)
        check_predicting(n, alpha)
        seed = self._resolve_seed(seed, on_copies)

        def begin(image: torch.Tensor, image_hash: str) -> Predict:
            return Predict(n, alpha, seed)

        results = dict(self._collect(images, seed, begin, on_copies))
        return [results[number] for number in range(len(images))]

    def certify(
        self,
        images: torch.Tensor,
        n0: int | None = None,
        n: int = 10_000,
        alpha: float = 0.001,
        seed: int | None = None,
        radii: Sequence[float] | None = None,
        resolution: float | None = None,
        bound: str | None = None,
        on_copies: Callable[[int], object] | None = None,
        max_copies_per_radius: float | None = None,
        max_evaluations: int | None = None,
    ) -> list[Certificate]:
        """Algorithm CERTIFY: a class and an l2 radius within which the smoothed classifier keeps it, or an abstention.

        For each image, with probability at least `1 - alpha` over the draws, the certificate is true (Cohen et al.
        2019, Proposition 2). `alpha` is for one image: of m certificates about `alpha * m` may be wrong.

        Without `radii`, `resolution` and `max_evaluations` all `n` copies are drawn and looked at once. With one of
        them an image is done as soon as the result is settled or the budget spent, under one of two bounds:

        - `mixture` (default) holds at all numbers of copies at once (`bounds.mixture_lower`), so that looking at the
          votes and stopping by them leaves the guarantee as it is, and so does stopping by evaluations
          (`stopping.affordable`). A radius is settled when it is proved, or when the votes speak against it or against
          its cost (`stopping.StoppingRule`: stopping too early costs a certificate, never makes a false one).
        - `clopper-pearson` (also `randomized-clopper-pearson`) is the bound of `n` copies, curtailed: the run ends
          when the copies left can no longer change which radii are proved. Those not drawn count as failures, so that
          the bound is a lower bound on what the whole run would have given.

        Args:
            images: Clean images, shape `(N, C, H, W)`, values in [0, 1].
            n0: Number of noisy copies that choose the candidate class; they end when the choice is settled. 0: there
                is no selection, the certificate is for the class that leads at the end, and each class has a share
                `alpha / K` (union bound). Default: 100, or 10 in a run that may stop early, where more would cost more
                than the proof: a wrong candidate only abstains.
            n: Number of fresh noisy copies that bound its probability; in a run that may stop early the largest
                number.
            alpha: Error probability of one certificate.
            seed: Seed of all draws. Default: from the operating system's entropy.
            radii: Radii of interest, pixel units, ascending; 0 asks for the label alone.
            resolution: The image is done when further copies would not, or hardly, raise its radius by more than this
                (pixel units).
            bound: One of `BOUNDS`, whose functions state their guarantees. `empirical-bernstein` counts soft
                votes, the softmax of the logits, and certifies the class with the largest mean. Default:
                `clopper-pearson`, or `mixture` in a run that may stop early.
            on_copies: Progress callback, called with the number of noisy copies decided since the last call.
            max_copies_per_radius: An image is done when one more of the `radii` would cost more noisy copies than
                this, in expectation. `None`: a radius in reach may cost any number up to `n`.
            max_evaluations: Network evaluations for an image, or `None`. When they are spent, it is done with what is
                proved by then. They are counted at the looks: at least the `n0` and 20 further copies are made, and
                the last few copies may go beyond.

        Returns:
            One certificate per image.

        Raises:
            TypeError, ValueError: An argument is not as described, or a radius is beyond what `n` copies can prove.
            FloatingPointError: A logit of the base classifier is not finite.
        """
        self.check_images(images)
        limits = (max_copies_per_radius, max_evaluations)
        results = dict(self.certify_each(images, n0, n, alpha, seed, radii, resolution, bound, on_copies, *limits))
        return [results[number] for number in range(len(images))]

    def certify_each(
        self,
        images: Iterable[torch.Tensor],
        n0: int | None = None,
        n: int = 10_000,
        alpha: float = 0.001,
        seed: int | None = None,
        radii: Sequence[float] | None = None,
        resolution: float | None = None,
        bound: str | None = None,
        on_copies: Callable[[int], object] | None = None,
        max_copies_per_radius: float | None = None,
        max_evaluations: int | None = None,
    ) -> Iterator[tuple[int, Certificate]]:
        """CERTIFY for images that come one by one: each certificate as soon as it is there.

        For each image, with probability at least `1 - alpha`, the certificate is true (Cohen et al. 2019, Proposition
        2). With `radii`, `resolution` or `max_evaluations` an image is done as soon as the result is settled or the
        budget spent, by a bound that allows for it. The next image is read when those under way have no copies left to
        fill the batches.

        Args:
            images: Clean images of shape `(C, H, W)`, values in [0, 1]. Consecutive ones of the same shape, dtype and
                device share batches.
            n0: Number of noisy copies that choose the candidate class; 0: the leader at the end, at a share `alpha /
                K`. Default: 100, or 10 in a run that may stop early.
            n: Number of fresh noisy copies that bound its probability; in a run that may stop early the largest
                number.
            alpha: Error probability of one certificate.
            seed: Seed of all draws. Default: from the operating system's entropy.
            radii: Radii (pixel units, ascending) whose settling ends an image, or `None`.
            resolution: Gain of radius (pixel units) below which an image ends, or `None`.
            bound: One of `BOUNDS`. Default: `clopper-pearson`, or `mixture` in a run that may stop early.
            on_copies: Progress callback, called with the number of noisy copies decided since the last call.
            max_copies_per_radius: Noisy copies that one more of the `radii` may cost in expectation; `None` for any
                number up to `n`.
            max_evaluations: Network evaluations after which an image is done, counted at the looks; or `None`.

        Yields:
            Number of the image, and its certificate, in the order in which they are done.

        Raises:
            TypeError, ValueError: An argument is not as described (at once), or an image (when it is read).
            FloatingPointError: A logit of the base classifier is not finite.
        """
        try:
            images = iter(images)
        except TypeError:
            raise TypeError(f"`images` must be an iterable of images, got {type(images).__name__}.") from None
        limits = (max_copies_per_radius, max_evaluations)
        sampling = Sampling.with_defaults(n0, n, alpha, bound, radii, resolution, *limits)
        sampling.check(self.sigma, self.base_classifier.num_classes)
        seed = self._resolve_seed(seed, on_copies)

        def begin(image: torch.Tensor, image_hash: str) -> Certify:
            procedure = CertifyEarly if sampling.stops_early else Certify
            return procedure(self.sigma, sampling, self._origin(seed, image, image_hash, sampling.bound))

        def checked() -> Iterator[torch.Tensor]:
            for image in images:
                self.check_images(image, "CHW")
                yield image

        return self._collect(checked(), seed, begin, on_copies)

    def certify_iter(
        self,
        image: torch.Tensor,
        n0: int = 20,
        n: int = 10_000,
        alpha: float = 0.001,
        seed: int | None = None,
        on_copies: Callable[[int], object] | None = None,
    ) -> Iterator[Certificate]:
        """CERTIFY as it goes: a certificate after every `stopping.STEP` noisy copies, on all votes so far.

        For one image, with probability at least `1 - alpha`, *all* of them are true at once (`bounds.mixture_lower`):
        one may watch, stop at any time, and keep the best.

        Args:
            image: One clean image, shape `(C, H, W)`, values in [0, 1].
            n0: Number of noisy copies that choose the candidate class. A few are enough, since a wrong candidate only
                abstains. 0: the leader at each time, at a share `alpha / K`.
            n: Largest number of further copies.
            alpha: Error probability.
            seed: Seed of all draws. Default: from the operating system's entropy.
            on_copies: Progress callback, called with the number of noisy copies decided since the last call.

        Raises:
            TypeError, ValueError: An argument is not as described.
            FloatingPointError: A logit of the base classifier is not finite.
        """
        self.check_images(image, "CHW")
        image = image.detach().clone()  # the caller may change it between two certificates
        sampling = Sampling(n0, n, alpha, "mixture")
        sampling.check(self.sigma, self.base_classifier.num_classes)
        seed = self._resolve_seed(seed, on_copies)
        origin = self._origin(seed, image, content_hash(image), sampling.bound)

        def votes_on(procedure: Procedure[Votes]) -> Votes:
            ((_, votes),) = self._collect([image], seed, lambda *_: procedure, on_copies)
            return votes

        return growing_certificates(votes_on, self.sigma, sampling, origin)

    def replay(
        self, image: torch.Tensor, certificate: Certificate, on_copies: Callable[[int], object] | None = None
    ) -> Certificate:
        """Cast the votes of a certificate again, to be compared with `certificate.agrees`.

        The votes are the same if the certificate is what it says: this classifier's, on this image, by its seed, on
        whatever device. On other hardware, or in other batches, a vote may move where two logits nearly tie; these
        copies are listed, and explain such votes to `agrees`.

        Args:
            image: The clean image, shape `(C, H, W)`, values in [0, 1].
            certificate: The certificate to check.
            on_copies: Progress callback, called with the number of noisy copies decided since the last call.

        Returns:
            The certificate that the votes give now, with its `near_ties`.

        Raises:
            TypeError, ValueError: `image` is not as described; or `certificate` does not follow from its own votes,
                has no seed, or is about another image or classifier, or another `sigma` or `grid`.
        """
        sampling, origin = self._recorded(image, certificate)
        recast = Recast(certificate, sampling, origin, near_tie_tolerance(self.base_classifier.settings))
        ((_, again),) = self._collect([image], origin["seed"], lambda *_: recast, on_copies)
        return again

    def noisy_copies(
        self, image: torch.Tensor, certificate: Certificate, count: int, start: int = 0, stage: str = "estimate"
    ) -> torch.Tensor:
        """The noisy copies that voted for a certificate, for a look at them.

        Args:
            image: The certified image, shape `(C, H, W)`, values in [0, 1].
            certificate: Its certificate, with a seed.
            count: How many copies.
            start: Number of the first copy.
            stage: "estimate" (the copies that the bound rests on) or "select" (those that chose the candidate).

        Returns:
            Shape `(count, C, H, W)`, pixel units, not clipped.

        Raises:
            TypeError, ValueError: An argument is not as described, or the certificate is about another image or other
                noise.
        """
        sampling, origin = self._recorded(image, certificate)
        check_integer("count", count, 1, MAX_N, "a number of noisy copies")
        check_integer("start", start, 0, MAX_N, "the number of a noisy copy")
        if stage not in ("estimate", "select"):
            raise ValueError(f"`stage` must be 'estimate' or 'select', got {stage!r}.")
        numbers = range(start, start + count)
        seeds = draw_seeds(origin["seed"], origin["image_hash"], sampling.purpose(stage), numbers)
        return self.noise.noisy_copies(image, [smoothing_seed for smoothing_seed, _ in seeds])

    def _recorded(self, image: torch.Tensor, certificate: Certificate) -> tuple[Sampling, dict]:
        """The sampling and the origin of a certificate, if it is about this classifier and this image."""
        self.check_images(image, "CHW")
        check_kind("certificate", certificate, Certificate)
        origin = self._origin(certificate.seed_of_draws, image, content_hash(image), certificate.bound)
        certificate.check_origin({**origin, "sigma": self.sigma})
        return Sampling(certificate.n0, certificate.n, certificate.alpha, certificate.bound), origin

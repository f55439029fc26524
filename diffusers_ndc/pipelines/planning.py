"""Plans of certificates: which sigma for which radius, and what a run will cost, from a short trial."""

import math
from collections.abc import Sequence

from ..certification.plan import Plan
from ..certification.procedures import Sampling
from ..certification.trial import TrialClassifier
from ..common.checks import MAX_SEED, BatchSize, check_integer, check_kind, class_indices, plain_numbers
from .base import Sift
from .certifying import CertifyingPipeline
from .inputs import Images


MAX_COPIES = 10_000
"""Largest number of noisy copies of an image in a trial."""


class PlanningPipeline(CertifyingPipeline):
    """A classifier pipeline that says what its certificates will prove and cost."""

    def plan(
        self,
        radii: Sequence[float],
        images: Images,
        labels: Sequence[int],
        sigmas: Sequence[float] | None = None,
        num_copies: int = 64,
        n0: int | None = None,
        n: int = 10_000,
        alpha: float = 0.001,
        method: str | None = None,
        batch_size: BatchSize = 64,
        seed: int = 0,
        sift: Sift | None = None,
        max_copies_per_radius: float | None = None,
        max_evaluations: int | None = None,
    ) -> Plan:
        """Expected certified accuracy and cost of `certify(radii=...)` by sigma and radius, before it starts.

        A few noisy copies of each image are classified with each sigma. From their votes, certificates are simulated:
        the plan has, with 95% intervals, the certified accuracy at each radius, noisy copies, network evaluations and
        seconds an image, and `plan.best(radius)` is the cheapest sigma with nearly the best accuracy.

        The choice of a sigma by the radius is sound: it is made before any image is certified, and the noise of the
        trial is not used again, so each certificate is false with a probability of at most `alpha`, as if the sigma
        had been given. (To certify an image with several sigmas and keep its best certificate is not sound at this
        `alpha`.) Give images that will not be evaluated: accuracies on images by which the sigma was chosen are
        optimistic. The plan itself is a little optimistic on the images that the levels were calibrated on.

        Args:
            radii: The l2 radii that are asked for, pixel units, ascending; 0 for the label alone.
            images: Clean labelled images, a few dozen, at least 2: PIL images, numpy arrays `(N, H, W, C)`, tensors
                `(N, C, H, W)`, or a list of single images; uint8, or floats in [0, 1].
            labels: Their class indices.
            sigmas: Noise levels to compare, pixel units, above 0. Default: those that the model was calibrated for
                with this method.
            num_copies: Noisy copies of each image with each sigma. The trial's cost is proportional to it.
            n0: Number of noisy copies that choose the candidate class, as for `certify`. Default: 10.
            n: Largest number of further noisy copies, as for `certify`.
            alpha: Probability with which a certificate may be wrong.
            method: `apndc`, `epndc` or `apndc-clean` (a latent model: `dds`), or `features` (the sifter alone).
                Default: `apndc` (`dds`).
            batch_size: (image, class, level) triples per network evaluation; peak memory depends on it alone. "auto":
                found by a short trial on the device, once for each network and image size.
            seed: Seed of the trial and of the simulation.
            sift: What the pipeline's `sifter` does for each copy: choose its candidate classes ("candidates"), count
                in the loss as well ("scores", which makes the decision partly discriminative), or nothing (False).
                Default: "candidates" if it was fitted for this sigma and method, else False.
            max_copies_per_radius: Noisy copies that one more radius may cost in expectation, as for `certify`.
            max_evaluations: Network evaluations for each image, as for `certify`.

        Returns:
            The plan; `print(plan)` shows it as a table.

        Raises:
            TypeError, ValueError: An argument is not as described, or beyond what the model was trained for; or a
                radius cannot be proved with any of the sigmas.
            FloatingPointError: A loss is not finite, for example after an overflow in half precision.

        Example:
            >>> plan = pipe.plan([0.25, 0.5], calibration_images, calibration_labels)  # doctest: +SKIP
            >>> print(plan)  # doctest: +SKIP
            >>> pipe.certify(images, sigma=plan.best(0.5).sigma, radii=[0.5])  # doctest: +SKIP
        """
        check_kind("method", method, str, type(None))
        chosen = self._planned_sigmas(method) if sigmas is None else check_sigmas(sigmas)
        if radii is None:
            raise TypeError("`radii` must be radii of at least 0 (pixel units), ascending, got None.")
        sampling = Sampling.with_defaults(n0, n, alpha, None, radii, None, max_copies_per_radius, max_evaluations)
        check_integer("num_copies", num_copies, 1, MAX_COPIES, "a number of noisy copies")
        check_integer("seed", seed, 0, MAX_SEED)
        classifiers = [self.classifier(sigma, method, None, batch_size, sift=sift) for sigma in chosen]
        sampling.check(chosen[-1], classifiers[-1].num_classes)
        batch, _ = self._preprocess(images, classifiers[-1])
        trials = [TrialClassifier(classifier, sigma) for classifier, sigma in zip(classifiers, chosen, strict=True)]
        trials[-1].check_images(batch)
        if len(batch) < 2:
            raise ValueError(f"`images` must be 2 images or more, got {len(batch)}.")
        classes = class_indices(labels, len(batch), classifiers[-1].num_classes).tolist()
        with self.progress_bar(total=len(trials) * len(batch) * num_copies) as bar:
            votes = [trial.try_out(batch, classes, num_copies, seed, bar.update) for trial in trials]
        self.maybe_free_model_hooks()
        return Plan.from_trials(votes, sampling, plain_numbers("radii", radii, "radii"), seed)

    def _planned_sigmas(self, method: str | None) -> list[float]:
        """The noise levels above 0 that the model was calibrated for with a method, ascending."""
        wanted = "apndc" if method is None else method
        sigmas = sorted(float(key) for key, methods in (self.config.levels or {}).items() if wanted in methods)
        sigmas = [sigma for sigma in sigmas if sigma > 0]
        if not sigmas:
            raise ValueError(
                "`sigmas` must be given for a model without levels that were calibrated for noisy images with this "
                f"method (see `calibrate`), got None with method={method!r}."
            )
        return sigmas


def check_sigmas(sigmas: Sequence[float]) -> list[float]:
    """Noise levels as ascending floats.

    Raises:
        TypeError, ValueError: They are not one or more different noise levels above 0.
    """
    expected = "one or more different noise levels above 0 (pixel units)"
    values = plain_numbers("sigmas", sigmas, expected)
    if not values or len(set(values)) < len(values) or not all(0 < sigma < math.inf for sigma in values):
        raise ValueError(f"`sigmas` must be {expected}, got {sigmas!r}.")
    return sorted(values)

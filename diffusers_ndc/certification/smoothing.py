"""Randomized smoothing (Cohen et al. 2019, arXiv:1902.02918) of any classifier of images."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from ..common.checks import check_integer, check_kind, check_seed, check_sigma
from ..common.images import check_floating, check_pixel_range, content_hash
from ..common.noise import fresh_seed, standard_normal
from ..common.seeds import uniform_number
from .bounds import ANYTIME, BOUNDS, CURTAILED, MAX_N, SOFT, check_alpha, majority_pvalue
from .certificate import Certificate, plurality
from .grid_noise import EIGHT_BIT_STEPS, check_grid, grid_steps
from .stopping import STEP, StoppingRule, check_stopping, largest_provable
from .voting import Draws, Votes, run, select


@dataclass(frozen=True)
class Prediction:
    """What PREDICT returns: with probability at least `1 - alpha`, `label` is the smoothed classifier's, or `None`.

    Args:
        label: The predicted class, or `None` where the two leading classes cannot be told apart (abstention).
        counts: Votes of each class; classes without a vote are left out.
        alpha: Probability with which a label that is not `None` may differ from the smoothed classifier's.
        seed: Seed of all draws.
    """

    label: int | None
    counts: dict[int, int]
    alpha: float
    seed: int


class SmoothedClassifier:
    """The classifier `g(x) = argmax_c P[f(x + sigma * eps) = c]`, estimated by votes of a base classifier `f`.

    Every draw is independent: its smoothing noise, and the noise of a base classifier that draws its own, come from a
    stream of the key (seed, image, purpose, number of the draw), and the draws that select the candidate are not used
    again. So counts depend neither on batch sizes nor on which images are certified together, and `f` is one and the
    same function for all images, as the proof asks. Votes are looked at when all draws up to a number have been
    counted, never when the quick ones have.

    Args:
        base_classifier: Any callable from images `(N, C, H, W)` to logits `(N, K)`. It meets `x + sigma * eps` as it
            is: not clipped, not rounded. One with a true attribute `randomized` is called with `seeds=`, one whole
            number per image, on which all its randomness must depend. It must treat the images of a batch
            independently, as a network in evaluation mode does. One with a method `stream`, as
            `NoisedDiffusionClassifier` has it, is fed the draws of several images together; one with a method
            `check_images` refuses those that it cannot take.
        sigma: Standard deviation of the smoothing noise, pixel units, above 0.
        grid: If given, the classifier that is smoothed is `f(round(x))`, with so many grid steps between two values of
            an 8-bit image, and noise is drawn on that grid (`grid_noise`): certificates of 8-bit images that rounding
            in floating point cannot make false. Fine grids are hardly noticed by `f`; 16 is a good one.

    Raises:
        TypeError: `base_classifier` is not callable, or `sigma` is no number.
        ValueError: `sigma` is not above 0, or `grid` no whole number of at least 1, or too fine for so much noise.
    """

    def __init__(self, base_classifier: Callable[..., torch.Tensor], sigma: float, grid: int | None = None):
        if not callable(base_classifier):
            raise TypeError(f"`base_classifier` is a {type(base_classifier).__name__}; accepted is a callable.")
        check_sigma(sigma)
        if sigma == 0:
            raise ValueError("`sigma` is 0; accepted for smoothing is a noise level above 0 (pixel units).")
        if grid is not None:
            check_grid(grid, sigma)
        self.base_classifier = base_classifier
        self.sigma = sigma
        self.grid = grid

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
            images: Shape `(N, C, H, W)`, values in [0, 1].
            n: Number of draws.
            alpha: Error probability.
            seed: Seed of all draws. Default: from the operating system's entropy.
            on_copies: Called with a number of draws whenever so many more are done.

        Raises:
            TypeError, ValueError: An argument is not as described.
            FloatingPointError: A logit of the base classifier is not finite.
        """
        self.check_images(images)
        self.check_settings(alpha, seed, on_copies, n=n)
        seed = fresh_seed() if seed is None else seed

        def predict_one(image, image_hash):
            votes = yield Draws("predict", 0, n)
            top, runner_up = (sorted(votes.counts.values(), reverse=True) + [0])[:2]
            label = plurality(votes.counts) if majority_pvalue(top, runner_up) <= alpha else None
            return Prediction(label, votes.counts, alpha, seed)

        found = dict(self._run(images, seed, predict_one, on_copies))
        return [found[index] for index in range(len(images))]

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
    ) -> list[Certificate]:
        """Algorithm CERTIFY: a class and an l2 radius within which the smoothed classifier keeps it, or an abstention.

        For each image, with probability at least `1 - alpha` over the draws, the certificate is true (Cohen et al.
        2019, Proposition 2). `alpha` covers one image: of m certificates about `alpha * m` may be wrong.

        Without `radii` and `resolution` all `n` draws are made and looked at once. With one of them an image is done
        as soon as nothing is left to be found out, under one of two bounds:

        - `mixture` (default) holds at all numbers of draws at once (`bounds.mixture_lower`), so that looking at the
          votes and stopping by them leaves the guarantee as it is. A radius is settled when it is proved, or when the
          draws speak against it (`GIVE_UP`: stopping too early costs a certificate, never makes a false one).
        - `clopper-pearson` (also `randomized-`) is that of `n` draws, curtailed: the run ends when the draws left can
          no longer change which radii are proved. Those not made count as failures, so that the bound is a lower one
          on what the whole run would have given.

        Args:
            images: Shape `(N, C, H, W)`, values in [0, 1].
            n0: Number of draws that choose the candidate class; they end when the choice is settled. 0: there is no
                selection, the certificate is for the class that leads at the end, and each class has a share
                `alpha / K` (union bound). Default: 100, or 10 with `radii` or `resolution`, where more would cost more
                than the proof: a wrong candidate only abstains.
            n: Number of fresh draws that bound its probability; with `radii` or `resolution` the most that are made.
            alpha: Error probability.
            seed: Seed of all draws. Default: from the operating system's entropy.
            radii: Radii of interest, pixel units, ascending; 0 asks for the label alone.
            resolution: The image is done when further draws would not, or hardly, raise its radius by more than this
                (pixel units).
            bound: One of `bounds.BOUNDS`, whose functions state their guarantees; `empirical-bernstein` counts soft
                votes, the softmax of the logits, and certifies the class with the largest mean. Default:
                `clopper-pearson`, or `mixture` with `radii` or `resolution`.
            on_copies: Called with a number of draws whenever so many more are done.

        Raises:
            TypeError, ValueError: An argument is not as described, or a radius is beyond what `n` draws can prove.
            FloatingPointError: A logit of the base classifier is not finite.
        """
        self.check_images(images)
        found = dict(self.certify_each(images, n0, n, alpha, seed, radii, resolution, bound, on_copies))
        return [found[index] for index in range(len(images))]

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
    ) -> Iterator[tuple[int, Certificate]]:
        """`certify` for images that come one by one: each certificate as soon as it is there.

        An image is asked for when those under way have no draws left to fill the batches with.

        Args:
            images: Images of shape `(C, H, W)`, values in [0, 1]. Those of one shape, dtype and device, one after
                another, share batches.
            n0: As for `certify`, and so the others.

        Yields:
            An image's place among the images, and its certificate.

        Raises:
            TypeError, ValueError: An argument is not as described, at once; an image, when it comes.
            FloatingPointError: A logit of the base classifier is not finite.
        """
        try:
            images = iter(images)
        except TypeError:
            raise TypeError(f"`images` is a {type(images).__name__}; accepted are images, one by one.") from None
        stops = radii is not None or resolution is not None
        n0 = selection_draws(n0, radii, resolution)
        bound = ("mixture" if stops else "clopper-pearson") if bound is None else bound
        self.check_settings(alpha, seed, on_copies, n0=n0, n=n)
        self._check_bound(bound, n0, n, alpha, radii, resolution)
        seed = fresh_seed() if seed is None else seed

        def certify_one(image, image_hash):
            record = self._record(seed, image, image_hash, bound)
            if stops:
                return self._certify_watched(n0, n, alpha, record, radii, resolution)
            return self._certify_fixed(n0, n, alpha, record)

        def checked():
            for image in images:
                self.check_images(image, "CHW")
                yield image

        return self._run(checked(), seed, certify_one, on_copies)

    def certify_iter(
        self,
        image: torch.Tensor,
        n0: int = 20,
        n: int = 10_000,
        alpha: float = 0.001,
        seed: int | None = None,
        on_copies: Callable[[int], object] | None = None,
    ) -> Iterator[Certificate]:
        """CERTIFY as it goes: a certificate after every `STEP` draws, on all votes so far.

        For one image, with probability at least `1 - alpha`, *all* of them are true at once (`bounds.mixture_lower`):
        one may watch, stop whenever one likes, and keep the best.

        Args:
            image: Shape `(C, H, W)`, values in [0, 1].
            n0: Number of draws that choose the candidate class. A few do, since a wrong one only abstains. 0: the
                leader at each time, as for `certify`.
            n: Number of further draws at most.
            alpha: Error probability.
            seed: Seed of all draws. Default: from the operating system's entropy.
            on_copies: Called with a number of draws whenever so many more are done.

        Raises:
            TypeError, ValueError: An argument is not as described.
            FloatingPointError: A logit of the base classifier is not finite.
        """
        self.check_images(image, "CHW")
        self.check_settings(alpha, seed, on_copies, n0=n0, n=n)
        return self._watch(image, n0, n, alpha, fresh_seed() if seed is None else seed, on_copies)

    def replay(
        self, image: torch.Tensor, certificate: Certificate, on_copies: Callable[[int], object] | None = None
    ) -> Certificate:
        """Make the draws of a certificate again: the certificate that they give now, its votes to be compared.

        The votes are the same where the certificate is what it says: this classifier's, on this image, by its seed. On
        other hardware, or in other batches, a vote may move where two logits tie to within round-off.

        Args:
            image: Shape `(C, H, W)`, values in [0, 1].
            certificate: What is said of it.
            on_copies: Called with a number of draws whenever so many more are done.

        Raises:
            TypeError, ValueError: `image` is not as described; or `certificate` does not follow from its own votes,
                names no seed, or is about another image or classifier, another `sigma` or `grid`, or of draws on
                another kind of device, where the same seed gives other noise.
        """
        self.check_images(image, "CHW")
        check_kind("certificate", certificate, Certificate)
        seed = certificate.seed_of_draws
        record = self._record(seed, image, content_hash(image), certificate.bound)
        certificate.check_origin({**record, "sigma": self.sigma})

        def draw_again(image, image_hash):
            n0, n, made = certificate.n0, certificate.n, sum(certificate.counts.values())
            selection = yield from select(n0)
            votes = yield Draws("estimate", 0, made, _scored(certificate.bound, selection))
            return self._certificate(selection, votes, n0, n, certificate.alpha, record)

        ((_, again),) = self._run(image[None], seed, draw_again, on_copies)
        return again

    def _watch(
        self, image: torch.Tensor, n0: int, n: int, alpha: float, seed: int, on_copies: Callable[[int], object] | None
    ) -> Iterator[Certificate]:
        record = self._record(seed, image, content_hash(image), "mixture")

        def votes_of(steps):
            ((_, votes),) = self._run(image[None], seed, lambda *_: steps, on_copies)
            return votes

        def ask(start):
            return (yield Draws("estimate", start, min(STEP, n - start)))

        selection, votes = votes_of(select(n0)), Votes()
        for start in range(0, n, STEP):
            votes = votes + votes_of(ask(start))
            yield self._certificate(selection, votes, n0, votes.n, alpha, record)

    def _certify_fixed(self, n0: int, n: int, alpha: float, record: dict) -> Generator[Draws, Votes, Certificate]:
        selection = yield from select(n0)
        votes = yield Draws("estimate", 0, n, _scored(record["bound"], selection))
        return self._certificate(selection, votes, n0, n, alpha, record)

    def _certify_watched(
        self,
        n0: int,
        n: int,
        alpha: float,
        record: dict,
        radii: Sequence[float] | None,
        resolution: float | None,
    ) -> Generator[Draws, Votes, Certificate]:
        """The largest of the certificates that were seen until nothing was left to be found out."""
        bound, best, votes = record["bound"], None, Votes()
        selection = yield from select(n0)
        more = min(n, STEP)
        while True:
            votes = votes + (yield Draws("estimate", votes.n, more))
            latest = self._certificate(selection, votes, n0, votes.n if bound in ANYTIME else n, alpha, record)
            best = latest if best is None or latest.radius > best.radius else best
            rule = StoppingRule(self.sigma, latest.alpha_of_candidate, bound, n, radii, resolution)
            more = rule.more(latest.tally, votes.n, -1.0 if best.abstained else best.radius)
            if not more:
                return replace(best, evaluations=latest.evaluations)

    def _run(self, images, seed, algorithm, on_copies):
        return run(self.base_classifier, self._noisy, images, seed, algorithm, on_copies)

    def _noisy(self, image: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        """Noisy copies of an image, one for each seed."""
        shape = tuple(image.shape)
        if self.grid is None:
            return image + self.sigma * standard_normal(shape, seeds, image.dtype, image.device)
        steps = torch.from_numpy(grid_steps(shape, seeds, self.sigma, self.grid)).to(image.device)
        on_grid = (image.double() * EIGHT_BIT_STEPS).round().long() * self.grid + steps
        return (on_grid.double() / (EIGHT_BIT_STEPS * self.grid)).to(image.dtype)  # of the grid point alone

    def _record(self, seed: int, image: torch.Tensor, image_hash: str, bound: str) -> dict:
        """What a certificate says besides votes and radius."""
        return {
            "bound": bound,
            "u": uniform_number(seed, image_hash) if bound == "randomized-clopper-pearson" else None,
            "seed": seed,
            "image_hash": image_hash,
            "base_classifier": getattr(self.base_classifier, "settings", {}),
            "device": image.device.type,
            "grid": self.grid,
            "pixels": None if self.grid is None else image.numel(),
        }

    def _certificate(self, selection: Votes, votes: Votes, n0: int, n: int, alpha: float, record: dict) -> Certificate:
        soft = record["bound"] in SOFT
        return Certificate.from_counts(
            selection.counts,
            votes.counts,
            self.sigma,
            alpha,
            n0=n0,
            n=n,
            num_classes=votes.num_classes,
            score_sum=votes.score_sum if soft else None,
            score_squares=votes.score_squares if soft else None,
            evaluations=selection.evaluations + votes.evaluations,
            **record,
        )

    def check_images(self, images: torch.Tensor, axes: str = "NCHW") -> None:
        """Refuse what are no images of these axes in [0, 1], of 8 bits where noise is drawn on a grid."""
        check_floating(images)
        if images.ndim != len(axes) or not images.numel():
            raise ValueError(
                f"`images` has the shape {tuple(images.shape)}; accepted is ({', '.join(axes)}), none of them 0."
            )
        if hasattr(self.base_classifier, "check_images"):
            self.base_classifier.check_images(images.view(-1, *images.shape[-3:]))
        check_pixel_range(images)
        if self.grid is not None:
            off = (images.double() * EIGHT_BIT_STEPS - (images.double() * EIGHT_BIT_STEPS).round()).abs().max().item()
            if off > 1e-3:
                raise ValueError(
                    f"`images` lie up to {off:.2g} of a step beside 8-bit values; accepted with `grid` are images of "
                    "whole numbers from 0 to 255, divided by 255."
                )

    def check_settings(
        self, alpha: float, seed: int | None, on_copies: Callable[[int], object] | None = None, **draws: int
    ) -> None:
        """Refuse an `alpha`, a `seed`, an `on_copies` or numbers of draws (`n0`, `n`) that are not as described."""
        check_alpha(alpha)
        check_seed(seed)
        if on_copies is not None and not callable(on_copies):
            raise TypeError(f"`on_copies` is a {type(on_copies).__name__}; accepted is a callable, or None.")
        for name, value in draws.items():
            check_integer(name, value, int(name == "n"), MAX_N, "a whole number of draws")

    def _check_bound(
        self, bound: str, n0: int, n: int, alpha: float, radii: Sequence[float] | None, resolution: float | None
    ) -> None:
        stops = radii is not None or resolution is not None
        accepted = set(BOUNDS) if n0 and not stops else ANYTIME | CURTAILED
        if not isinstance(bound, str) or bound not in accepted:
            raise ValueError(
                f"`bound` is {bound!r}; accepted with n0={n0}, radii={radii!r} and resolution={resolution!r} are "
                f"{sorted(accepted)}."
            )
        if stops:
            share = alpha if n0 else alpha / getattr(self.base_classifier, "num_classes", 1)
            check_stopping(radii, resolution, largest_provable(self.sigma, share, bound, n))


def selection_draws(n0: int | None, radii: Sequence[float] | None, resolution: float | None) -> int:
    """`n0`, or its default, which is less where a run may stop early."""
    if n0 is not None:
        return n0
    return 100 if radii is None and resolution is None else 10


def _scored(bound: str, selection: Votes) -> int | None:
    """The class whose soft votes the bound wants."""
    return plurality(selection.counts) if bound in SOFT else None

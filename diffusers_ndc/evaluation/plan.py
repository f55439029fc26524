"""The plan of a run: what it would prove and cost, and which sigma would be the best, from a short trial."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from ..certification.forecast import Estimate, Forecast
from ..certification.plan import Plan
from ..certification.procedures import Sampling
from ..certification.trial import TrialClassifier
from .data import FAULTS, LabelledImages, load_labelled_images
from .settings import Settings
from .subject import Classifier, Pipeline, load_classifier, load_model, read_image


COPIES = 64
"""Noisy copies of each image of the trial, with each sigma."""


@dataclass(frozen=True)
class RunPlan:
    """The plan of a run of the evaluation.

    Args:
        plan: Expected accuracies and costs, with the run's sigma among others.
        run: The forecast for one image of the run.
        images: Number of images of the run.
        processes: Number of its processes.
        shared: Images of the trial that the run takes too.
    """

    plan: Plan
    run: Forecast
    images: int
    processes: int
    shared: int

    @property
    def evaluations(self) -> Estimate:
        """Network evaluations of the whole run."""
        return Estimate(*(self.images * value for value in self.run.evaluations))

    @property
    def seconds(self) -> Estimate:
        """Seconds that the whole run takes."""
        return Estimate(*(self.images * value / self.processes for value in self.run.seconds))

    def to_markdown(self) -> str:
        """The plan as Markdown, with the evaluations, time and memory of the whole run."""
        evaluations, seconds = self.evaluations, self.seconds
        time, low, high = (timedelta(seconds=round(value)) for value in seconds)
        radii = ", ".join(f"{radius:g}" for radius in self.run.radii)
        memory = self.plan.peak_memory
        parts = [
            self.plan.to_markdown(),
            f"This run, of {self.images} images with sigma {self.run.sigma:g} and radii {radii}, is estimated to take "
            f"{evaluations.value:,.0f} network evaluations ({evaluations.low:,.0f} to {evaluations.high:,.0f}), "
            f"{time} ({low} to {high}; h:mm:ss) with {self.processes} process{'' if self.processes == 1 else 'es'}"
            + (f", and {memory / 2**30:.2f} GiB for each." if memory is not None else "."),
        ]
        if self.shared:
            parts.append(
                f"{self.shared} of the {self.plan.images} images of the trial are images of the run: a sigma that is "
                "chosen by this plan makes its accuracies optimistic. The certificates are sound all the same."
            )
        return "\n\n".join(parts)


def plan_run(settings: Settings) -> RunPlan | None:
    """Plan a run without starting it: nothing is written.

    The sigmas that the model was calibrated for are compared with the run's. To choose one by its radii is sound,
    before any image is certified; the trial takes images that the run does not take, as far as there are any. Those
    that cannot be read or have no label are left out.

    Args:
        settings: Settings of the run.

    Returns:
        The plan on the main process, `None` on the others.

    Raises:
        OSError, TypeError, ValueError: A setting is invalid; or the model, the data set and the settings do not go
            together.
        FloatingPointError: A loss is not finite, for example after an overflow in half precision.

    Example:
        >>> settings = Settings("examples/mnist", "examples/mnist/data", "runs/mnist", limit=100, stop_early=True)
        >>> print(plan_run(settings).to_markdown())  # doctest: +SKIP
    """
    replace(settings, plan=True).check()
    settings.check_places()
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision=settings.mixed_precision)
    if not accelerator.is_main_process:
        return None
    data = load_labelled_images(settings)
    pipe = load_model(settings, accelerator) if settings.has_model else None
    by_sigma, id2label = {}, None
    for sigma in _sigmas(settings, pipe):
        by_sigma[sigma], id2label = load_classifier(replace(settings, sigma=sigma), pipe, accelerator)
    base = by_sigma[settings.sigma]
    sampling = _sampling(settings, base.num_classes)
    chosen = trial_images(settings, data)
    images, labels, indices = _read(chosen, chosen.labels(base.num_classes, id2label), base)
    trials = []
    with tqdm(total=len(by_sigma) * len(images) * COPIES, unit="copy") as bar, accelerator.autocast():
        for sigma, classifier in by_sigma.items():
            trial = TrialClassifier(classifier, sigma)
            trials.append(trial.try_out(images, labels, COPIES, settings.seed, bar.update))
    plan = Plan.from_trials(trials, sampling, settings.radii, settings.seed)
    run = plan.at(settings.sigma)
    assert run is not None  # some radii are provable
    return RunPlan(plan, run, len(data), accelerator.num_processes, len(set(indices) & set(data.indices)))


def trial_images(settings: Settings, data: LabelledImages) -> LabelledImages:
    """Choose the images of the trial at random: others of the split than those of the run, as far as there are any.

    A stream is not read for the sake of the trial: it takes images of the run.

    Args:
        settings: Settings of the run.
        data: Its images.
    """
    generator, count = random.Random(settings.seed), settings.plan_images
    everything = data
    if not settings.streaming:
        everything = load_labelled_images(replace(settings, indices_file=None, skip=1, limit=None))
    taken = set(data.indices)
    others = [place for place, index in enumerate(everything.indices) if index not in taken]
    places = _sample(others, count, generator)
    if len(places) < count:
        of_the_run = [place for place, index in enumerate(everything.indices) if index in taken]
        places += _sample(of_the_run, count - len(places), generator)
    indices = [everything.indices[place] for place in places]
    return LabelledImages(indices, everything.rows.select(places), everything.label_names)


def _sampling(settings: Settings, num_classes: int) -> Sampling:
    """How the run certifies an image."""
    radii = tuple(settings.provable_radii(num_classes))
    sampling = Sampling(
        n0=settings.n0 or 0,
        n=settings.n,
        alpha=settings.alpha,
        bound=settings.bound,
        radii=radii if settings.stop_early else None,
        max_copies_per_radius=settings.max_copies_per_radius,
        max_evaluations=settings.max_evaluations,
    )
    sampling.check(settings.sigma, num_classes)
    return sampling


def _sample(places: list[int], count: int, generator: random.Random) -> list[int]:
    return generator.sample(places, min(count, len(places)))


def _sigmas(settings: Settings, pipe: Pipeline | None) -> list[float]:
    """The run's sigma and those that the model was calibrated for, ascending."""
    sigmas = {settings.sigma}
    if pipe is not None and settings.classifier is None:
        calibrated = (pipe.config.levels or {}).items()
        sigmas |= {float(key) for key, methods in calibrated if float(key) > 0 and settings.method in methods}
    return sorted(sigmas)


def _read(
    data: LabelledImages, labels: Sequence[int | None], base: Classifier
) -> tuple[list[torch.Tensor], list[int], list[int]]:
    """Images, labels and indices of the rows that can be used.

    Raises:
        ValueError: There are fewer than two.
    """
    images, classes, indices = [], [], []
    for number, label in enumerate(labels):
        if label is None:
            continue
        try:
            images.append(read_image(data, number, base))
        except FAULTS:
            continue
        classes.append(label)
        indices.append(data.indices[number])
    if len(images) < 2:
        raise ValueError(f"`--split` must have two images or more that can be read, with labels, got {len(images)}.")
    return images, classes, indices

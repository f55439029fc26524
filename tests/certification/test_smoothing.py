import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import EDMEulerScheduler
from helpers.networks import tiny_unet
from scipy import stats

from diffusers_ndc import Certificate, Denoiser, NoisedDiffusionClassifier, NoiseLevels, SmoothedClassifier
from diffusers_ndc.certification.bound_names import BOUNDS
from diffusers_ndc.certification.bounds import clopper_pearson_lower, majority_pvalue
from diffusers_ndc.certification.procedures import Predict
from diffusers_ndc.certification.voting import Votes
from diffusers_ndc.common.copies import CallableClassifier, Decided
from diffusers_ndc.common.noise import standard_normal
from diffusers_ndc.common.seeds import derive_seeds


SIGMA = 0.25


def halfspace(images):
    """A linear base classifier: class 1 where the mean exceeds 1/2. Its smoothed version is known exactly."""
    score = images.flatten(1).mean(1) - 0.5
    return torch.stack([-score, score], dim=1)


def halfspace_image(distance):
    """A 4 x 4 image at this l2 distance from the boundary of `halfspace`, in class 1."""
    return torch.full((1, 1, 4, 4), 0.5 + distance / 4)


def test_radius_approaches_the_true_distance_and_never_exceeds_it_unduly():
    """For a half-space the certified radius is exact (Cohen et al. 2019): p_A = Phi(distance / sigma)."""
    smoothed = SmoothedClassifier(halfspace, SIGMA)
    (certificate,) = smoothed.certify(halfspace_image(0.3), n0=20, n=20_000, alpha=0.001, seed=1)
    assert certificate.label == 1
    assert 0.28 < certificate.radius < 0.3
    share = certificate.counts[1] / certificate.n
    assert share == pytest.approx(stats.norm.cdf(0.3 / SIGMA), abs=0.01)


@pytest.mark.parametrize("distance, n0, alpha, runs", [(0.2, 5, 0.1, 600), (0.05, 0, 0.2, 300)])
def test_certificates_are_wrong_at_most_at_their_rate(distance, n0, alpha, runs):
    """Coverage by simulation, with a selection and following the leader: radius above the true distance, or a wrong
    label, in at most alpha of the runs."""
    smoothed, wrong = SmoothedClassifier(halfspace, SIGMA), 0
    for seed in range(runs):
        (certificate,) = smoothed.certify(halfspace_image(distance), n0=n0, n=60, alpha=alpha, seed=seed)
        wrong += certificate.label == 0 or certificate.radius > distance
    assert wrong <= stats.binom.ppf(1 - 1e-4, runs, alpha)
    assert wrong > 0, "such an alpha should show some error"


def test_watched_certificates_are_all_true_at_once():
    """Coverage by simulation, looking after every step and keeping the largest radius ever seen."""
    smoothed, alpha, runs = SmoothedClassifier(halfspace, SIGMA), 0.1, 300
    wrong = 0
    for seed in range(runs):
        watched = list(smoothed.certify_iter(halfspace_image(0.2)[0], n0=5, n=400, alpha=alpha, seed=seed))
        assert [certificate.n for certificate in watched] == list(range(20, 401, 20))
        wrong += any(certificate.label == 0 or certificate.radius > 0.2 for certificate in watched)
    assert wrong <= stats.binom.ppf(1 - 1e-4, runs, alpha)


def test_radii_stop_the_draws_once_each_is_proved_or_ruled_out():
    smoothed, far, near = SmoothedClassifier(halfspace, SIGMA), halfspace_image(1.0), halfspace_image(0.2)
    (proved,) = smoothed.certify(far, n0=10, n=10_000, radii=[0.25], seed=0)
    assert proved.radius >= 0.25 and proved.n == 44 and proved.bound == "mixture" and proved.verify()
    assert proved.selection_counts == {1: 6} and proved.evaluations == 50
    (ruled_out,) = smoothed.certify(near, n0=10, n=10_000, radii=[0.5], seed=0)
    assert ruled_out.radius < 0.2 and ruled_out.n < 500 and ruled_out.verify()
    (label,) = smoothed.certify(near, n0=10, n=10_000, radii=[0.0, 0.5], seed=0)
    assert label.label == 1 and 0 < label.radius < 0.2
    (both,) = smoothed.certify(near, n0=10, n=10_000, radii=[0.1, 0.5], seed=0)
    assert 0.1 <= both.radius < 0.2
    (undecided,) = smoothed.certify(near, n0=10, n=1_000, radii=[0.199], seed=0)
    assert undecided.evaluations <= 1_006 and 0 < undecided.radius < 0.199 and undecided.verify()


def test_watching_changes_nothing_about_the_draws():
    smoothed, image = SmoothedClassifier(halfspace, SIGMA), halfspace_image(0.2)
    (unwatched,) = smoothed.certify(image, n0=20, n=130, bound="mixture", seed=5)
    *_, last = smoothed.certify_iter(image[0], n0=20, n=130, seed=5)
    assert last == unwatched and last.n == 130


def test_all_bounds_certify_the_half_space():
    smoothed, far = SmoothedClassifier(halfspace, SIGMA), halfspace_image(0.3)
    certificates = {
        bound: smoothed.certify(far, n0=20, n=2_000, bound=bound, seed=4)[0]
        for bound in BOUNDS
        if bound != "empirical-bernstein"
    }
    assert all(certificate.verify() and certificate.label == 1 for certificate in certificates.values())
    assert len({str(certificate.counts) for certificate in certificates.values()}) == 4, "draws depend on the bound"
    votes = replace(certificates["clopper-pearson"], u=certificates["randomized-clopper-pearson"].u)
    radius = {bound: SIGMA * stats.norm.ppf(replace(votes, bound=bound).p_lower) for bound in certificates}
    assert radius["mixture"] < radius["runner-up"] <= radius["clopper-pearson"] <= radius["randomized-clopper-pearson"]
    assert radius["randomized-clopper-pearson"] < 0.32 and certificates["randomized-clopper-pearson"].u is not None


def test_soft_votes_certify_the_class_with_the_largest_mean():
    """Scores Phi(t * margin) have the mean Phi(distance / sqrt(sigma^2 + 1 / t^2)) in closed form."""
    sharpness = 10.0

    def soft_halfspace(images):
        probability = torch.special.ndtr(sharpness * 4 * (images.flatten(1).mean(1) - 0.5).double())
        return torch.stack([1 - probability, probability], dim=1).clamp(min=1e-12).log()

    smoothed = SmoothedClassifier(soft_halfspace, SIGMA)
    (soft,) = smoothed.certify(halfspace_image(0.3), n0=20, n=5_000, bound="empirical-bernstein", seed=0)
    mean = stats.norm.cdf(0.3 / math.sqrt(SIGMA**2 + sharpness**-2))
    assert soft.score_sum / soft.n == pytest.approx(mean, abs=0.01)
    assert soft.label == 1 and soft.verify() and 0.2 < soft.radius < SIGMA * stats.norm.ppf(mean)


def test_following_the_leader_needs_no_selection_and_splits_alpha():
    smoothed = SmoothedClassifier(halfspace, SIGMA)
    (certificate,) = smoothed.certify(halfspace_image(0.3), n0=0, n=1_000, alpha=0.01, seed=0)
    assert certificate.label == 1 and certificate.selection_counts == {} and certificate.verify()
    assert certificate.p_lower == clopper_pearson_lower(certificate.counts[1], 1_000, 0.005)
    (early,) = smoothed.certify(halfspace_image(1.0), n0=0, n=1_000, alpha=0.002, radii=[0.25], seed=0)
    assert early.verify() and early.n == early.evaluations == 44
    grown = list(smoothed.certify_iter(halfspace_image(0.3)[0], n0=0, n=100, seed=0))
    assert all(each.verify() for each in grown) and grown[-1].label == 1


def test_a_curtailed_run_proves_what_the_whole_run_would_have_proved():
    smoothed = SmoothedClassifier(halfspace, SIGMA)
    for seed, distance in enumerate((0.15, 0.2, 0.25, 0.3, 0.35, 0.5)):
        image = halfspace_image(distance)
        (whole,) = smoothed.certify(image, n0=9, n=300, seed=seed)
        (cut,) = smoothed.certify(image, n0=9, n=300, seed=seed, radii=[0.15, 0.25], bound="clopper-pearson")
        assert cut.verify() and cut.n == 300 and sum(cut.counts.values()) <= 300
        assert [cut.radius >= radius for radius in (0.15, 0.25)] == [whole.radius >= radius for radius in (0.15, 0.25)]
        assert cut.radius <= whole.radius + 1e-12
    assert sum(cut.counts.values()) < 300


def test_resolution_stops_where_more_draws_would_hardly_tell_more():
    smoothed = SmoothedClassifier(halfspace, SIGMA)
    (sharp,) = smoothed.certify(halfspace_image(0.2), n0=10, n=100_000, resolution=0.05, seed=0)
    assert sharp.label == 1 and 0.15 < sharp.radius < 0.2 and sharp.n < 6_000
    (far,) = smoothed.certify(halfspace_image(2.0), n0=10, n=1_000, resolution=0.05, seed=0)
    (whole,) = smoothed.certify(halfspace_image(2.0), n0=10, n=1_000, bound="mixture", seed=0)
    assert whole.radius - 0.05 <= far.radius < whole.radius and far.n < 700


class QuickOnesFirst(CallableClassifier):
    """A classifier whose pool returns the copies of class 1 early, as easy copies come back early in practice."""

    def __init__(self):
        super().__init__(halfspace)

    def pool(self):
        return QuickPool()

    def __call__(self, images, seeds=None):
        raise AssertionError("votes come through the pool")


class QuickPool:
    """Decides seven copies at a time, and returns one in each step: those that are surest of class 1 first."""

    def __init__(self):
        self.copies = []

    @property
    def room(self):
        return 7 - len(self.copies)

    def __len__(self):
        return len(self.copies)

    def add(self, copies):
        self.copies += copies

    def step(self):
        logits = halfspace(torch.stack([copy.image for copy in self.copies]))
        quickest = logits[:, 1].argmax().item()
        copy = self.copies.pop(quickest)
        return Decided([copy.key], logits[quickest : quickest + 1], [1])


def test_votes_are_counted_in_the_order_of_the_draws():
    """A certificate does not see that the easy copies come back first: it is the one of the plain run."""
    images = torch.cat([halfspace_image(distance) for distance in (0.1, 0.2, 0.5, -0.3)])
    settings = {"n0": 11, "n": 800, "seed": 2}
    for options in ({}, {"radii": [0.0, 0.1, 0.3]}, {"resolution": 0.1}, {"radii": [0.1], "bound": "clopper-pearson"}):
        plain = SmoothedClassifier(halfspace, SIGMA).certify(images, **settings, **options)
        pooled = SmoothedClassifier(QuickOnesFirst(), SIGMA).certify(images, **settings, **options)
        assert pooled == plain
    plain = list(SmoothedClassifier(halfspace, SIGMA).certify_iter(images[0], **settings))
    assert list(SmoothedClassifier(QuickOnesFirst(), SIGMA).certify_iter(images[0], **settings)) == plain


def test_abstains_on_the_boundary():
    smoothed = SmoothedClassifier(halfspace, SIGMA)
    (certificate,) = smoothed.certify(halfspace_image(0.0), n0=10, n=100, seed=0)
    (prediction,) = smoothed.predict(halfspace_image(0.0), n=100, seed=0)
    assert certificate.abstained and prediction.label is None


def test_predict_is_the_binomial_test_of_the_two_leading_classes():
    smoothed = SmoothedClassifier(halfspace, SIGMA)
    (prediction,) = smoothed.predict(halfspace_image(0.2), n=250, alpha=0.001, seed=0)
    assert prediction.label == 1 and sum(prediction.counts.values()) == 250
    (prediction,) = smoothed.predict(halfspace_image(1.0), n=10, alpha=0.001, seed=0)
    assert prediction.counts == {1: 10} and prediction.label is None  # p-value 2 * 2^-10 > alpha
    (prediction,) = smoothed.predict(halfspace_image(1.0), n=11, alpha=0.001, seed=0)
    assert prediction.label == 1


class Watcher(CallableClassifier):
    """A base classifier that keeps every noisy image and seed that it met."""

    def __init__(self):
        super().__init__(self.watch, randomized=True)
        self.noisy, self.seeds = [], []

    def watch(self, images, seeds):
        self.noisy.append(images)
        self.seeds.extend(seeds)
        return halfspace(images)


def test_every_draw_is_fresh_and_reaches_the_base_classifier_unclipped():
    watcher, image = Watcher(), halfspace_image(0.3)
    (certificate,) = SmoothedClassifier(watcher, SIGMA).certify(image, n0=150, n=1000, seed=3)
    draws = sum(certificate.selection_counts.values()) + 1000
    noise = (torch.cat(watcher.noisy) - image) / SIGMA
    assert len(noise) == len(noise.flatten(1).unique(dim=0)) == draws, "a selection draw was used again"
    assert len(set(watcher.seeds)) == draws, "two draws share the base classifier's noise"
    assert torch.cat(watcher.noisy).min() < 0 and torch.cat(watcher.noisy).max() > 1
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
    correlation = np.corrcoef(noise.flatten(1).numpy())
    assert np.abs(correlation[np.triu_indices(draws, 1)]).mean() == pytest.approx(0.8 / 4, abs=0.02)


@pytest.mark.parametrize("how", [{}, {"bound": "mixture"}])
def test_noisy_copies_are_those_that_vote(how):
    watcher, image = Watcher(), halfspace_image(0.3)
    smoothed = SmoothedClassifier(watcher, SIGMA)
    (certificate,) = smoothed.certify(image, n0=1, n=120, seed=3, **how)
    seen = torch.cat(watcher.noisy)
    selected = smoothed.noisy_copies(image[0], certificate, 1, stage="select")
    voted = smoothed.noisy_copies(image[0], certificate, 120)
    assert torch.equal(torch.cat([selected, voted]), seen)
    assert torch.equal(smoothed.noisy_copies(image[0], certificate, 20, start=100), voted[100:])
    for wrong in ({"count": 0}, {"start": -1}, {"stage": "luck"}, {"certificate": replace(certificate, seed=None)}):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}`"):
            smoothed.noisy_copies(**{"image": image[0], "certificate": certificate, "count": 1, **wrong})
    with pytest.raises(ValueError, match="image_hash"):
        smoothed.noisy_copies(halfspace_image(0.1)[0], certificate, 1)


def test_noisy_copies_on_a_grid_are_of_the_grid():
    smoothed = SmoothedClassifier(halfspace, SIGMA, grid=1)
    image = (halfspace_image(0.3) * 255).round() / 255
    (certificate,) = smoothed.certify(image, n0=1, n=10, seed=3)
    steps = smoothed.noisy_copies(image[0], certificate, 5) * 255
    assert (steps - steps.round()).abs().max() < 1e-3


def test_a_callable_with_randomness_of_its_own_is_replayed_by_its_seeds():
    def noisy_halfspace(images, seeds):
        own = standard_normal(tuple(images.shape[1:]), seeds, images.dtype, images.device)
        return halfspace(images + 0.2 * own)

    base = CallableClassifier(noisy_halfspace, randomized=True, num_classes=2, settings={"method": "noisy"})
    smoothed, image = SmoothedClassifier(base, SIGMA), halfspace_image(0.2)
    (certificate,) = smoothed.certify(image, n0=10, n=150, seed=4)
    assert certificate.base_classifier == {"method": "noisy"} and 0 < certificate.counts.get(0, 0) < 75
    assert smoothed.replay(image[0], certificate) == certificate
    assert smoothed.certify(image, n0=0, n=150, seed=4)[0].selection_counts == {}


def test_a_source_of_images_may_use_its_memory_again():
    images = [halfspace_image(distance)[0] for distance in (0.0, 0.5, 0.3, -0.4)]

    def one_buffer():
        buffer = torch.empty_like(images[0])
        for image in images:
            yield buffer.copy_(image)

    smoothed = SmoothedClassifier(halfspace, SIGMA)
    how = {"n0": 10, "n": 250, "seed": 1}
    assert dict(smoothed.certify_each(one_buffer(), **how)) == dict(
        enumerate(smoothed.certify(torch.stack(images), **how))
    )
    changing = images[1].clone()
    growing = smoothed.certify_iter(changing, n0=5, n=60, seed=1)
    certificates = [next(growing)]
    changing.fill_(0.0)
    certificates += growing
    assert certificates == list(smoothed.certify_iter(images[1], n0=5, n=60, seed=1))


def test_a_classifier_that_is_neither_plain_nor_complete_is_refused():
    class Randomized:
        randomized = True

        def __call__(self, images, seeds):
            return halfspace(images)

    class WithoutSettings:
        def pool(self):
            return None

        def __call__(self, images):
            return halfspace(images)

    for incomplete, match in ((Randomized(), "CallableClassifier"), (WithoutSettings(), "all members")):
        with pytest.raises(TypeError, match=f"`base_classifier` must .*{match}"):
            SmoothedClassifier(incomplete, SIGMA)


def betrayed(unit):
    """A classifier that answers 1 if values next to zero have bits below `unit`.

    In half precision the sum of 2^-9 and noise cannot end there, whatever the noise: both are multiples of `unit`.
    """

    def classify(images):
        values = images.double()
        has_fine_bits = (values.abs() < 2.0**-10) & ((values / unit).frac() != 0)
        return torch.nn.functional.one_hot(has_fine_bits.flatten(1).any(dim=1).long(), 2).double()

    return classify


@pytest.mark.parametrize("dtype, unit", [(torch.bfloat16, 2.0**-17), (torch.float16, 2.0**-20)])
def test_noise_in_half_precision_does_not_betray_the_image(dtype, unit):
    black = torch.zeros(1, 3, 32, 32, dtype=dtype)
    other = black + 2.0**-9
    distance = (other - black).double().norm().item()  # 0.108
    smoothed = SmoothedClassifier(betrayed(unit), SIGMA)
    (certificate,) = smoothed.certify(black, n0=10, n=1000, seed=0)
    (prediction,) = smoothed.predict(other, n=1000, seed=0)
    assert certificate.radius > 0.5 > distance and prediction.label == certificate.label == 1
    # the control: a sum in half precision is certified as well, and another class just beside
    noise = standard_normal((3, 32, 32), range(1000), torch.float32, torch.device("cpu"))
    naive = {name: image + (SIGMA * noise).to(dtype) for name, image in (("black", black), ("other", other))}
    assert betrayed(unit)(naive["black"]).argmax(dim=1).sum() > 980
    assert betrayed(unit)(naive["other"]).argmax(dim=1).sum() == 0


def test_purpose_seed_and_image_each_change_the_draws():
    def draws(run):
        watcher = Watcher()
        run(SmoothedClassifier(watcher, SIGMA))
        return torch.cat(watcher.noisy)

    image, other = halfspace_image(0.3), halfspace_image(0.1)
    reference = draws(lambda s: s.predict(image, n=5, seed=0)) - image
    assert torch.equal(draws(lambda s: s.predict(image, n=5, seed=0)) - image, reference)
    for other_draws in (
        draws(lambda s: s.predict(image, n=5, seed=1)) - image,
        draws(lambda s: s.predict(other, n=5, seed=0)) - other,
        draws(lambda s: s.certify(image, n0=5, n=5, seed=0))[:3] - image,
        draws(lambda s: s.certify(image, n0=5, n=5, seed=0))[-5:] - image,
        draws(lambda s: s.predict(image, n=5)) - image,
    ):
        assert not torch.isclose(other_draws, reference[: len(other_draws)]).any()


def test_counts_depend_neither_on_batch_size_nor_on_company(images):
    denoiser = Denoiser(tiny_unet(), EDMEulerScheduler(), null_class=3)
    levels = NoiseLevels.log_grid(0.8, 9.0, 3)

    def counts(batch, batch_size):
        base = NoisedDiffusionClassifier(denoiser, SIGMA, levels=levels, batch_size=batch_size)
        certificates = SmoothedClassifier(base, SIGMA).certify(batch, n0=7, n=130, seed=11)
        for certificate in certificates:
            draws = sum(certificate.selection_counts.values()) + 130
            assert certificate.evaluations == draws * (3 * 3 + 1)
        return [(certificate.selection_counts, certificate.counts) for certificate in certificates]

    together = counts(images[:3], 64)
    assert counts(images[:3], 13) == together
    assert counts(images[1:2], 64) == together[1:2]
    assert counts(images[[2, 0]], 50) == [together[2], together[0]]


def test_the_certificate_says_how_it_was_made(images):
    base = NoisedDiffusionClassifier(Denoiser(tiny_unet(), EDMEulerScheduler()), SIGMA)
    (certificate,) = SmoothedClassifier(base, SIGMA).certify(images[:1], n0=1, n=1)
    settings = certificate.base_classifier
    assert (settings["method"], settings["null_source"]) == ("apndc", "class_mean")
    assert NoiseLevels.from_dict(settings["levels"]) == base.levels
    assert 0 <= certificate.seed < 2**63 and len(certificate.image_hash) == 32


def test_evaluations_are_those_that_were_spent(images):
    """Where classes are sifted, each draw costs what it costs."""
    levels = NoiseLevels.log_grid(0.8, 9.0, 3).sifted(0.1)
    base = NoisedDiffusionClassifier(Denoiser(tiny_unet(), EDMEulerScheduler(), null_class=3), SIGMA, levels=levels)
    certificates = SmoothedClassifier(base, SIGMA).certify(images[:2], n0=10, n=30, seed=0)
    assert sum(certificate.evaluations for certificate in certificates) == base.evaluations
    for certificate in certificates:
        draws = sum(certificate.selection_counts.values()) + 30
        assert draws * 4 <= certificate.evaluations < draws * base.evaluations_per_image
    (unwatched,) = SmoothedClassifier(base, SIGMA).certify(images[:1], n0=10, n=30, bound="mixture", seed=0)
    *_, last = SmoothedClassifier(base, SIGMA).certify_iter(images[0], n0=10, n=30, seed=0)
    assert (last.evaluations, last.counts) == (unwatched.evaluations, unwatched.counts)


SETTINGS = [
    *({"n0": 6, "n": 40, "bound": bound} for bound in sorted(BOUNDS)),
    {"n0": 0, "n": 60},
    {"n0": 6, "n": 200, "radii": [0.05, 0.4]},
    {"n0": 6, "n": 200, "radii": [0.05, 0.4], "bound": "randomized-clopper-pearson"},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("grid", [None, 4])
def test_draws_can_be_made_again(images, settings, grid):
    images = (images * 255).round() / 255
    denoiser = Denoiser(tiny_unet(), EDMEulerScheduler(), null_class=3)
    classifier = NoisedDiffusionClassifier(denoiser, SIGMA, levels=NoiseLevels.log_grid(0.6, 3, 3))
    smoothed = SmoothedClassifier(classifier, SIGMA, grid)
    for image, certificate in zip(images[:2], smoothed.certify(images[:2], seed=3, **settings), strict=True):
        again = smoothed.replay(image, certificate)
        assert certificate.agrees(again) and not certificate.votes_moved(again)
        assert again.evaluations <= certificate.evaluations


def test_images_of_several_kinds_are_certified_as_each_one_alone():
    images = [torch.rand(1, *size, generator=torch.Generator().manual_seed(0)) for size in ((4, 4), (4, 6), (4, 4))]
    images.append(images[0].double())

    def shade(batch):
        return torch.stack([batch.mean((1, 2, 3)), torch.full((len(batch),), 0.45)], dim=1)

    smoothed = SmoothedClassifier(shade, SIGMA)
    found = dict(smoothed.certify_each(images, n0=3, n=30, seed=0))
    assert [found[place] for place in range(4)] == [smoothed.certify(x[None], 3, 30, seed=0)[0] for x in images]


def test_votes_that_were_never_cast_are_found_out():
    smoothed, image = SmoothedClassifier(halfspace, SIGMA), halfspace_image(0.3)[0]
    (certificate,) = smoothed.certify(image[None], n0=10, n=100, seed=1)
    counts = {**certificate.counts, 1: certificate.counts[1] + 3, 0: certificate.counts[0] - 3}
    forged = Certificate.from_counts(
        certificate.selection_counts, counts, SIGMA, 0.001, n0=10, seed=1, image_hash=certificate.image_hash
    )
    assert forged.verify() and forged.radius > certificate.radius
    again = smoothed.replay(image, forged)
    assert forged.votes_moved(again) == 3 and not forged.agrees(again) and again.radius == certificate.radius


@pytest.mark.parametrize(
    "change, match",
    [
        ({"seed": None}, "seed None"),
        ({"image_hash": "0" * 32}, "image_hash '0000"),
        ({"base_classifier": {"method": "dc"}}, "base_classifier.method 'dc' instead of None"),
        ({"radius": 3.0}, "flawed"),
        ({"seed": -1}, "seed"),
    ],
)
def test_replay_refuses_certificates_of_other_draws(change, match):
    smoothed, image = SmoothedClassifier(halfspace, SIGMA), halfspace_image(0.3)[0]
    (certificate,) = smoothed.certify(image[None], n0=10, n=100, seed=1)
    with pytest.raises(ValueError, match=match):
        smoothed.replay(image, replace(certificate, **change))
    with pytest.raises(ValueError, match="sigma 0.25 instead of 0.5"):
        SmoothedClassifier(halfspace, 0.5).replay(image, certificate)


def test_progress_counts_every_draw(images):
    seen = []
    SmoothedClassifier(lambda x: x.flatten(1), SIGMA).certify(images, n0=1, n=205, on_copies=seen.append)
    assert sum(seen) == 4 * 206


def test_noise_streams_are_prefixes_and_reproducible():
    assert derive_seeds((1, "a"), 5)[:2] == derive_seeds((1, "a"), 2)
    assert len({seed for key in range(100) for seed in derive_seeds((key,), 10)}) == 1000
    one, two, again = standard_normal((3, 2), [2**40 + 1, 1, 2**40 + 1], torch.float32, torch.device("cpu"))
    assert torch.equal(one, again)
    assert not torch.isclose(one, two).any(), "a seed must count with all its bits"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_logit_that_is_not_finite_is_an_error(value):
    smoothed = SmoothedClassifier(lambda x: torch.full((len(x), 2), value), SIGMA)
    with pytest.raises(FloatingPointError, match="must be finite"):
        smoothed.certify(halfspace_image(0.3), n0=1, n=1)


@pytest.mark.parametrize(
    "arguments, match",
    [
        ({"n0": -1}, "`n0`"),
        ({"n0": 1.0}, "`n0`"),
        ({"n": 0}, "`n`"),
        ({"n": 10.5}, "`n`"),
        ({"alpha": 0.0}, "`alpha`"),
        ({"alpha": 1.0}, "`alpha`"),
        ({"alpha": math.nan}, "`alpha`"),
        ({"seed": -1}, "`seed`"),
        ({"seed": 2**63}, "`seed`"),
        ({"radii": []}, "`radii`"),
        ({"radii": [0.25, -0.5]}, "`radii`"),
        ({"radii": [math.inf]}, "`radii`"),
        ({"radii": [math.nan]}, "`radii`"),
        ({"radii": [0.1, 0.1]}, "ascending"),
        ({"radii": [0.25], "n": 43}, "at most 0.24"),
        ({"radii": [0.25], "n": 39, "bound": "clopper-pearson"}, "at most 0.24"),
        ({"radii": [0.0], "n": 2}, "no radius is, not even 0"),
        ({"radii": [0.1], "resolution": 0.1, "n": 100}, "`radii` must be None if `resolution`"),
        ({"resolution": -0.1}, "`resolution`"),
        ({"bound": "hope"}, "`bound`"),
        ({"bound": "runner-up", "n0": 0}, "`bound`"),
        ({"bound": "runner-up", "radii": [0.1], "n": 100}, "`bound`"),
        ({"images": torch.full((1, 1, 4, 4), 1.01)}, "`images`"),
        ({"images": torch.full((1, 1, 4, 4), -0.01)}, "`images`"),
        ({"images": torch.full((1, 1, 4, 4), math.nan)}, "`images`"),
        ({"images": torch.zeros(1, 4, 4)}, "`images`"),
    ],
)
def test_refuses_bad_input_before_any_work(arguments, match):
    def never(images):
        raise AssertionError("work was done")

    with pytest.raises(ValueError, match=match):
        SmoothedClassifier(never, SIGMA).certify(**{"images": halfspace_image(0.3), "n0": 1, "n": 1, **arguments})


def test_refuses_types_and_sigma():
    with pytest.raises(TypeError, match="floating-point"):
        SmoothedClassifier(halfspace, SIGMA).predict(torch.zeros(1, 1, 4, 4, dtype=torch.uint8))
    with pytest.raises(TypeError, match="callable"):
        SmoothedClassifier("resnet", SIGMA)
    for sigma in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="`sigma`"):
            SmoothedClassifier(halfspace, sigma)


def test_images_under_way_are_finished_before_an_image_that_cannot_be_read_raises():
    images = [halfspace_image(distance)[0] for distance in (0.1, 0.3, 0.5)]
    smoothed, how = SmoothedClassifier(halfspace, SIGMA), {"n0": 5, "n": 70, "seed": 1}
    for broken, kind in ((torch.full((1, 4, 4), 9.0), ValueError), (None, TypeError)):
        found = {}
        with pytest.raises(kind, match="`images` must"):
            for number, certificate in smoothed.certify_each([*images, broken, images[0]], **how):
                found[number] = certificate
        assert found == dict(enumerate(smoothed.certify(torch.stack(images), **how)))


def failing_on_white(raises):
    """The half-space, which fails for copies of an image that is white in one corner."""

    def classify(images):
        is_white = images[:, 0, 0, 0] > 3
        if raises and is_white.any():
            raise FloatingPointError("Losses must be finite")
        return halfspace(images).masked_fill(is_white[:, None], math.nan)

    return SmoothedClassifier(classify, SIGMA)


@pytest.mark.parametrize("raises", [True, False])
def test_images_under_way_are_finished_if_one_of_them_has_no_finite_logits(raises):
    images = torch.cat([halfspace_image(distance) for distance in (0.1, 0.3, 0.5, 0.2)])
    how = {"n0": 5, "n": 30, "seed": 1}
    plain = SmoothedClassifier(halfspace, SIGMA).certify(images, **how)
    smoothed = failing_on_white(raises)
    noise = smoothed.noise.noisy_copies

    def noisy_copies(image, *args, **kwargs):
        return noise(image, *args, **kwargs) + (5.0 if torch.equal(image, images[1]) else 0.0)

    smoothed.noise.noisy_copies = noisy_copies
    read, found = [], {}

    def source():
        for image in (*images, *[images[3]] * 40):
            read.append(image)
            yield image

    with pytest.raises(FloatingPointError, match="must be finite"):
        for number, certificate in smoothed.certify_each(source(), **how):
            found[number] = certificate
    assert set(found) == set(range(max(found) + 1)) - {1} and {0, 2} <= set(found)
    assert len(read) < 44, "images were read after the failure"
    assert all(found[number] == plain[min(number, 3)] for number in found)
    with pytest.raises(FloatingPointError, match="must be finite"):
        smoothed.certify(images[1:2], **how)


@pytest.mark.parametrize("how", [{"n0": 0}, {"bound": "runner-up"}])
def test_a_single_class_without_a_rival_is_refused_before_any_work(how):
    base = CallableClassifier(lambda images: pytest.fail("a copy was drawn"), num_classes=1)
    with pytest.raises(ValueError, match="`base_classifier` must have two classes or more .*, got one class"):
        SmoothedClassifier(base, SIGMA).certify(halfspace_image(0.3), n=10, **how)
    alone = CallableClassifier(lambda images: torch.zeros(len(images), 1), num_classes=1)
    (certificate,) = SmoothedClassifier(alone, SIGMA).certify(halfspace_image(0.3), n0=5, n=100, seed=0)
    assert certificate.label == 0 and SmoothedClassifier(alone, SIGMA).replay(halfspace_image(0.3)[0], certificate)


def test_another_n_or_alpha_of_a_prediction_has_other_draws():
    def noise(**changes):
        watcher = Watcher()
        SmoothedClassifier(watcher, SIGMA).predict(
            halfspace_image(0.3), **{"n": 30, "alpha": 0.1, "seed": 3, **changes}
        )
        return torch.cat(watcher.noisy)[:20]

    plain = noise()
    assert torch.equal(noise(), plain)
    for change in ({"n": 31}, {"alpha": 0.2}, {"seed": 4}):
        assert not torch.isclose(noise(**change), plain).flatten(1).all(dim=1).any()


@pytest.mark.parametrize("number_type", [np.float16, np.float32, np.longdouble])
def test_numbers_of_numpy_s_types_count_as_what_they_are(number_type):
    image = torch.full((1, 1, 2, 2), 0.6)
    sigma, alpha, radius = number_type(0.3), number_type(0.002), number_type(0.03)

    def results(*numbers):
        sigma, alpha, radius = numbers
        smoothed = SmoothedClassifier(lambda images: images.flatten(1)[:, :2] - images.flatten(1)[:, 2:], sigma)
        return [
            *smoothed.certify(
                image, n0=0, n=200, alpha=alpha, radii=[radius], max_copies_per_radius=type(radius)(50), seed=0
            ),
            *smoothed.certify(image, n=200, alpha=alpha, resolution=radius, seed=0),
            *smoothed.certify_iter(image[0], n0=0, n=40, alpha=alpha, seed=0),
            *smoothed.predict(image, n=50, alpha=alpha, seed=0),
        ]

    small, plain = results(sigma, alpha, radius), results(float(sigma), float(alpha), float(radius))
    assert small == plain and repr(small) == repr(plain)
    with pytest.raises(ValueError, match="`alpha` must be"):
        results(sigma, number_type(0), radius)


@pytest.mark.parametrize("sigma", [np.longdouble("1e4000"), np.longdouble("1e-4000")])
def test_a_sigma_beyond_the_range_of_floats_raises(sigma):
    with pytest.raises(ValueError, match="`sigma` must be"):
        SmoothedClassifier(lambda images: images.flatten(1)[:, :2], sigma)


def test_a_prediction_compares_its_p_value_in_double_precision():
    """In half precision a p-value that is slightly larger than `alpha` would be equal to it."""
    p_value = majority_pvalue(42, 18)
    alpha = np.float16(p_value)
    assert float(alpha) < p_value
    procedure = Predict(60, alpha, 0)
    procedure.add(Votes({0: 42, 1: 18}))
    assert procedure.result.label is None and procedure.result.alpha == float(alpha)


def test_settings_that_a_record_could_not_hold_raise():
    with pytest.raises(TypeError, match="`settings` must be plain values"):
        CallableClassifier(lambda images: images.flatten(1), settings={"temperature": np.float32(2)})

import math

import pytest
import torch
from diffusers import DDPMScheduler
from helpers.networks import tiny_unet
from helpers.sifters import NUM_FEATURES, random_sift, sifter_of

from diffusers_ndc import Denoiser, NoisedDiffusionClassifier, NoiseLevels, SiftingRule, SmoothedClassifier
from diffusers_ndc.certification.bounds import clopper_pearson_lower
from diffusers_ndc.diffusion import ClassSifter


LEVELS = NoiseLevels((1.0, 2.0, 4.0), (1.0, 0.5, 0.25))
RULE = SiftingRule((0.05, 0.02), relative=True)


@pytest.fixture
def denoiser(unet):
    return Denoiser(unet, DDPMScheduler(), null_class=3)


@pytest.fixture
def noisy():
    return torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(2))


def classifier_of(denoiser, sift, levels=LEVELS, sigma=0.25, method=None, **settings):
    return NoisedDiffusionClassifier(denoiser, sigma, method, levels, sift=sift, **settings)


def test_candidates_are_the_classes_near_the_best_one():
    scores = torch.tensor([[0.0, -0.5, -3.0, -9.0], [-4.0, -3.0, 0.0, -2.0]])
    near = random_sift(4, gap=1.0, min_classes=1).candidates(scores)
    assert near.tolist() == [[True, True, False, False], [False, False, True, False]]
    two = random_sift(4, gap=1.0, min_classes=2).candidates(scores)
    assert two.tolist() == [[True, True, False, False], [False, False, True, True]]
    assert random_sift(4, gap=1e9).candidates(scores).all()


def test_scores_are_log_probabilities():
    sift, features = random_sift(), torch.randn(5, NUM_FEATURES)
    expected = (features @ sift.weight.T).softmax(1)
    torch.testing.assert_close(sift(features).exp(), expected)


def test_parameters_stay_in_float32_whatever_the_pipeline_is_cast_to():
    sift, features = random_sift(), torch.randn(5, NUM_FEATURES)
    assert torch.equal(random_sift().to(torch.float16)(features), sift(features))
    assert random_sift().half().double().weight.dtype == torch.float32


def test_autocast_does_not_round_the_scores():
    sift, features = random_sift(), 100 * torch.randn(5, NUM_FEATURES)
    expected = sift(features)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sift(features), expected)


def test_settings_tell_every_other_sift():
    sift = random_sift()
    settings = sift.settings
    assert random_sift().settings == settings == sift.with_rule(expected_classes=2.0).settings
    others = [random_sift(seed=1), sift.with_rule(gap=2.0), sift.with_rule(min_classes=2)]
    others += [sift.with_rule(loss_weight=0.5), random_sift(sigma=0.5), random_sift(method="epndc")]
    hashes = [other.settings["hash"] for other in others]
    assert len({settings["hash"], *hashes}) == len(others) + 1


@pytest.mark.parametrize(
    "arguments, match",
    [
        ({"gap": -1.0}, "`gap`"),
        ({"gap": math.nan}, "`gap`"),
        ({"min_classes": 0}, "`min_classes`"),
        ({"loss_weight": -0.1}, "`loss_weight`"),
        ({"level_zero": {"loss_weight": 1.0}}, "`level_zero`"),
        ({"level_zero": {"loss_weight": 1.0, "levels": LEVELS.to_dict(), "gap": -1.0}}, "`gap`"),
        ({"level_zero": {"loss_weight": 1.0, "levels": LEVELS.to_dict(), "gaps": 1.0}}, "`level_zero`"),
        ({"sigma": -1.0}, "`sigma`"),
    ],
)
def test_refuses_bad_rules(arguments, match):
    with pytest.raises(ValueError, match=match):
        random_sift(**arguments)


def test_a_sifter_finds_replaces_and_removes_its_sifts(tmp_path):
    first, second = random_sift(), random_sift(sigma=0.5)
    sifter = sifter_of(first, second)
    assert sifter.find(0.25, "apndc") is first and sifter.find(0.5) is second
    assert sifter.find(0.25, "epndc") is None and sifter.find(1.0) is None
    newer = random_sift(seed=1)
    assert sifter.with_sift(newer).find(0.25) is newer and len(sifter.with_sift(newer).all_sifts()) == 2
    assert sifter.without(0.25, "apndc").all_sifts() == [second]
    sifter.save_pretrained(tmp_path)
    loaded = ClassSifter.from_pretrained(tmp_path)
    assert [sift.settings for sift in loaded.all_sifts()] == [first.settings, second.settings]
    with pytest.raises(ValueError, match="`sifts` must have one entry"):
        ClassSifter([first.config, first.config])


@pytest.mark.parametrize(
    "sift, match",
    [
        (random_sift(sigma=0.5), "`sift` must be fitted for sigma=0.25"),
        (random_sift(method="epndc"), "`sift` must be fitted for .*method='apndc'"),
        (random_sift(num_classes=4), "`sift` must have 3 classes"),
    ],
)
def test_refuses_a_sift_for_something_else(denoiser, sift, match):
    with pytest.raises(ValueError, match=match):
        classifier_of(denoiser, sift)


@pytest.mark.parametrize("method, sigma", [("apndc", 0.25), ("apndc-clean", 0.25), ("epndc", 0.25), ("dc", 0.0)])
def test_candidates_are_scored_as_without_a_sift(denoiser, noisy, method, sigma):
    """Between candidates the losses are those of the full classifier; dropped classes are behind by their scores."""
    sift = random_sift(sigma=sigma, method=method)
    sifted = classifier_of(denoiser, sift, sigma=sigma, method=method, seed=5)
    full = classifier_of(denoiser, None, sigma=sigma, method=method, seed=5)
    copies = sifted.open_copies(sifted._copies(noisy, None))
    several = copies.in_play.sum(1) > 1
    assert several.any() and not several.all() and not copies.in_play.all(dim=1).all()
    logits, expected = sifted(noisy), full(noisy)
    kept = copies.in_play & several[:, None]
    torch.testing.assert_close(logits[kept], expected[kept])
    assert (logits.argmax(1) == expected.masked_fill(~copies.in_play, -math.inf).argmax(1))[several].all()
    best = logits.max(1, keepdim=True).values
    torch.testing.assert_close((best - logits)[~copies.in_play], copies.gaps[~copies.in_play], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method, sigma", [("apndc", 0.25), ("epndc", 0.25), ("dc", 0.0)])
def test_evaluations_are_one_pass_and_those_of_the_candidates(denoiser, noisy, method, sigma):
    calls = []
    denoiser.unet.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    classifier = classifier_of(denoiser, random_sift(sigma=sigma, method=method), sigma=sigma, method=method, seed=5)
    numbers = classifier.open_copies(classifier._copies(noisy, None)).num_in_play
    calls.clear()
    classifier.evaluations = 0
    classifier(noisy)
    assert classifier.evaluations == sum(calls) == len(noisy) + 3 * sum(number for number in numbers if number > 1)


@pytest.mark.parametrize("levels", [LEVELS, NoiseLevels(LEVELS.sigmas, LEVELS.weights, RULE)])
@pytest.mark.parametrize("loss_weight", [0.0, 0.7])
def test_an_image_s_answer_depends_neither_on_company_nor_on_batches(denoiser, noisy, levels, loss_weight):
    sift, seeds = random_sift(gap=4.0, loss_weight=loss_weight), list(range(9))
    logits = classifier_of(denoiser, sift, levels)(noisy, seeds)
    for size in (1, 4):
        torch.testing.assert_close(classifier_of(denoiser, sift, levels, batch_size=size)(noisy, seeds), logits)
    alone = classifier_of(denoiser, sift, levels)(noisy[4:5], seeds[4:5])
    torch.testing.assert_close(alone, logits[4:5])


def test_scores_that_count_decide_alone_where_they_are_clear(denoiser, noisy):
    sift = random_sift(gap=1e-3, loss_weight=0.5)
    classifier = classifier_of(denoiser, sift, seed=0)
    scores = -classifier.open_copies(classifier._copies(noisy, None)).losses / 0.5
    classifier.evaluations = 0
    logits = classifier(noisy)
    assert classifier.evaluations == len(noisy)
    torch.testing.assert_close(logits.max(1).values, 0.5 * scores.max(1).values)
    assert torch.equal(logits.argmax(1), scores.argmax(1))


def test_squared_errors_are_never_sifted(denoiser, noisy):
    sifted = classifier_of(denoiser, random_sift(gap=0.0), seed=3)
    plain = classifier_of(denoiser, None, seed=3)
    torch.testing.assert_close(sifted.squared_errors(noisy), plain.squared_errors(noisy))


def test_gradients_flow_through_the_sift(denoiser, noisy):
    """Where one class is left, the distance of the others is that of their scores, and has their gradient."""
    classifier = classifier_of(denoiser, random_sift(gap=0.0), seed=0)
    images = noisy.clone().requires_grad_()
    logits = classifier(images)
    margin = logits.topk(2, dim=1).values.diff(dim=1).sum()
    (gradient,) = torch.autograd.grad(margin, images)
    assert (gradient.flatten(1).norm(dim=1) > 1e-6).all()
    step = 1e-3 * gradient / gradient.norm()
    with torch.no_grad():
        ahead, behind = (classifier(noisy + sign * step).topk(2, dim=1).values.diff(dim=1).sum() for sign in (1, -1))
    assert ahead - behind == pytest.approx(2e-3 * gradient.norm().item(), rel=0.05)


def test_many_classes_open_full_batches():
    """With a thousand classes, of which two are candidates, a pool opens as many copies as one with two classes."""
    unet = tiny_unet(1001)
    denoiser = Denoiser(unet, DDPMScheduler(), null_class=1000)
    plain = classifier_of(denoiser, None)
    sifted = classifier_of(denoiser, random_sift(1000, expected_classes=2.0))
    assert (plain.pool().room, sifted.pool().room) == (1, 64)


def test_overflow_in_the_features_raises(denoiser, noisy):
    for method in ("apndc", "epndc"):
        with pytest.raises(FloatingPointError):
            classifier_of(denoiser, random_sift(method=method), method=method)(noisy * math.nan)


@pytest.mark.slow
def test_certificates_hold_whatever_the_sifter_proposes(denoiser):
    """With a random sifter the classifier is another one, and bounds on *its* votes cover as often as they say.

    Negative control: a bound without confidence, the share of the votes, does not cover.
    """
    image, alpha, n = torch.full((1, 1, 8, 8), 0.5), 0.1, 60
    smoothed = SmoothedClassifier(classifier_of(denoiser, random_sift(gap=0.5)), 0.25)
    many = smoothed.predict(image, n=4_000, seed=1_000)[0].counts
    top = max(many, key=lambda label: many[label])
    p = many[top] / 4_000
    assert 0.55 < p < 0.95
    certificates = [smoothed.certify(image, n0=20, n=n, alpha=alpha, seed=seed)[0] for seed in range(60)]
    counts = [certificate.counts.get(top, 0) for certificate in certificates]
    slack = 3 * math.sqrt(p * (1 - p) / 4_000)
    false = sum(clopper_pearson_lower(count, n, alpha) > p + slack for count in counts)
    careless = sum(count / n > p + slack for count in counts)
    assert false <= 13  # 60 draws at 0.1: more than 13 once in 1,000
    assert careless > 13

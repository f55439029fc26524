import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from helpers.networks import tiny_unet
from scipy import optimize

from diffusers_ndc import NoisedDiffusionClassifierPipeline, NoiseLevels
from diffusers_ndc.diffusion.candidate_errors import CandidateErrors
from diffusers_ndc.diffusion.level_fitting import RIDGE, choose_levels, fit_weights, sift_thresholds


def synthetic_errors(signal, num_images=2_000, num_classes=4, seed=0):
    """Errors of levels whose true class is better by `signal` on average, under unit noise on each class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, num_images)
    errors = 5 + rng.standard_normal((num_images, len(signal), num_classes))
    errors[np.arange(num_images), :, labels] -= np.asarray(signal)
    return errors, labels


def accuracy(errors, labels, levels, weights):
    return (np.einsum("ntk,t->nk", errors[:, levels], weights).argmin(1) == labels).mean()


def test_weights_are_those_of_the_exact_likelihood():
    """For Gaussian errors of unit variance the posterior is softmax(-signal * error): the fit finds the signals."""
    signal = [0.3, 1.0, 2.0]
    errors, labels = synthetic_errors(signal, num_images=40_000)
    for prior in (np.array(signal), np.ones(3)):
        weights, objective = fit_weights(errors, labels, prior)
        np.testing.assert_allclose(weights, signal, atol=0.06)
        loss = fit_loss(errors, labels, weights)
        assert loss <= objective <= loss + 3 * RIDGE / 40_000


def test_few_images_leave_the_weights_near_the_prior():
    """Where the fit without the ridge runs away, it stays with the prior, and generalises better for it."""
    signal = np.full(12, 0.6)
    errors, labels = synthetic_errors(signal, num_images=25)
    fresh = synthetic_errors(signal, num_images=4_000, seed=1)
    weights, _ = fit_weights(errors, labels, signal)
    assert (0.1 < weights).all() and (weights < 2).all()
    assert accuracy(*fresh, range(12), weights) > 0.9 * accuracy(*fresh, range(12), signal)


def test_a_level_that_misleads_gets_no_weight():
    errors, labels = synthetic_errors([1.0, -1.0])
    weights, _ = fit_weights(errors, labels, np.ones(2))
    assert weights[0] > 0.5 and weights[1] < 0.01
    assert choose_levels(errors, labels, np.ones(2), 2)[0] == [0]


def test_the_most_telling_levels_come_first():
    errors, labels = synthetic_errors([0.1, 1.5, 0.0, 0.8, 0.2])
    chosen, weights = choose_levels(errors, labels, np.ones(5), 2)
    assert chosen == [1, 3]
    fresh = synthetic_errors([0.1, 1.5, 0.0, 0.8, 0.2], seed=1)
    assert accuracy(*fresh, chosen, weights) > accuracy(*fresh, range(5), np.ones(5)) + 0.02


def test_scale_of_the_errors_does_not_matter():
    errors, labels = synthetic_errors([0.5, 1.0])
    weights, loss = fit_weights(errors, labels, np.ones(2))
    scaled, same_loss = fit_weights(errors * np.array([1e4, 1e-3])[:, None], labels, np.array([1e-4, 1e3]))
    np.testing.assert_allclose(scaled * [1e4, 1e-3], weights, rtol=1e-2)
    assert same_loss == pytest.approx(loss, rel=1e-6)
    assert optimize.approx_fprime(weights, lambda w: fit_loss(errors, labels, w)) == pytest.approx(
        0, abs=2 * RIDGE / len(labels)
    )


def fit_loss(errors, labels, weights):
    logits = torch.from_numpy(-np.einsum("ntk,t->nk", errors, weights))
    return torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).item()


def knowing_pipe(knows):
    """A pipeline whose network draws class y as an even shade, at the noise levels of which `knows(sigma)` is true."""
    pipe = NoisedDiffusionClassifierPipeline(tiny_unet(3), DDPMScheduler(prediction_type="sample"))
    pipe.set_progress_bar_config(disable=True)
    run_blocks = pipe.unet.forward  # for their features

    def forward(sample, timestep, class_labels=None, return_dict=True):
        run_blocks(sample, timestep, class_labels=class_labels, return_dict=return_dict)
        sigma = pipe.denoiser.parametrisation.log_sigmas[timestep.round().long()].exp()
        shade = 0.6 * (class_labels - 1) * knows(sigma)
        return (shade.view(-1, 1, 1, 1).expand_as(sample),)

    pipe.unet.forward = forward
    return pipe


def test_thresholds_keep_the_true_class_and_follow_the_gaps():
    errors, labels = synthetic_errors([1.5, 1.0, 0.5], num_images=4_000)
    weights = np.array([1.5, 1.0, 0.5])
    thresholds = sift_thresholds(errors, weights, labels, 0.99)
    assert len(thresholds) == 2
    losses = np.cumsum(errors * weights[:, None], axis=1)
    gaps = losses[np.arange(len(labels)), :, labels] / losses.min(2) - 1
    gaps = gaps[gaps[:, 2] == 0]  # the true class has the smallest loss of all levels
    assert len(gaps) < len(labels)
    np.testing.assert_allclose((gaps[:, :2] <= thresholds).mean(0), 0.99, atol=1e-3)
    assert (sift_thresholds(errors, weights, labels, 1.0) >= gaps[:, :2].max(0) - 1e-9).all()


def test_copies_that_are_lost_anyway_do_not_widen_the_thresholds():
    errors, labels = synthetic_errors([1.5, 1.0, 0.5], num_images=1_000)
    weights = np.array([1.5, 1.0, 0.5])
    thresholds = sift_thresholds(errors, weights, labels, 0.999)
    hopeless = errors.copy()
    hopeless[np.arange(1_000), :, labels] += 1e3
    both = np.concatenate([errors, hopeless]), np.concatenate([labels, labels])
    np.testing.assert_allclose(sift_thresholds(both[0], weights, both[1], 0.999), thresholds)
    assert (sift_thresholds(hopeless, weights, labels, 0.999) > 100 * thresholds).all(), "if all are lost, all count"


def test_candidates_within_a_smaller_gap():
    scores = np.array([[0.0, 1.0, 3.0, 9.0], [2.0, 0.0, 5.0, 4.0], [0.0, 7.0, 1.0, 8.0]])
    kept = np.array([[True, True, True, False], [True, True, True, True], [True, True, True, False]])
    errors = np.arange(24.0).reshape(3, 2, 4)
    data = CandidateErrors(errors, np.array([1, 0, 1]), kept, scores)
    assert data.gaps().tolist() == [1.0, 2.0, 7.0]
    narrow = data.within(2.0, min_classes=1)
    assert narrow.labels.tolist() == [1, 0], "the copy whose true class is no candidate is left out"
    assert narrow.kept.tolist() == [[True, True, False, False], [True, True, False, False]]
    np.testing.assert_array_equal(narrow.errors, errors[:2])
    assert data.within(0.0, min_classes=2).kept.sum(1).tolist() == [2, 2], "the least number of candidates is kept"
    assert data.within(9.0, min_classes=1).kept.tolist() == kept.tolist(), "no other class becomes one"


def test_the_gap_of_a_copy_keeps_it():
    """Also where the best score and the gap, added again, round to less than the score."""
    scores = np.random.default_rng(0).normal(size=(100, 3))
    for one in scores:
        data = CandidateErrors(np.zeros((1, 1, 3)), one.argmax(keepdims=True), np.ones((1, 3), dtype=bool), one[None])
        assert len(data.within(float(data.gaps()[0]), min_classes=1).labels) == 1


@pytest.fixture
def shades():
    """Images in the shades that `knowing_pipe` draws, and their classes."""
    labels = torch.arange(30) % 3
    return (0.5 + 0.3 * (labels - 1)).view(-1, 1, 1, 1).expand(-1, 1, 8, 8), labels.tolist()


@pytest.mark.parametrize("sigma, method", [(0.0, "dc"), (0.25, "epndc")])
def test_calibrated_levels_become_the_model_s_own(shades, tmp_path, sigma, method):
    images, labels = shades
    pipe, candidates = knowing_pipe(lambda sigma: sigma > 0), NoiseLevels.log_grid(0.8, 9.0, 6)
    before = pipe.classifier(sigma, method).levels
    chosen = pipe.calibrate(images, labels, sigma, num_levels=2, method=method, candidates=candidates)
    assert chosen == pipe.calibrate(images, labels, sigma, 2, method, candidates, batch_size=7)
    assert len(chosen.sifting.thresholds) == len(chosen) - 1 and chosen.sifting.relative
    assert (chosen.smoothing_sigma, chosen.method) == (sigma, method)
    assert 1 <= len(chosen) <= 2 and set(chosen.sigmas) <= set(candidates.sigmas)
    assert pipe.classifier(sigma, method).levels == chosen != before
    for other_sigma, other_method in ((0.25, "apndc"), (0.5, "epndc")):
        assert pipe.classifier(other_sigma, other_method).levels not in (chosen, candidates)
    pipe.save_pretrained(tmp_path)
    assert NoisedDiffusionClassifierPipeline.from_pretrained(tmp_path).classifier(sigma, method).levels == chosen


def test_levels_are_found_again_by_a_sigma_that_is_nearly_the_same(shades):
    images, labels = shades
    pipe, candidates = knowing_pipe(lambda sigma: sigma > 0), NoiseLevels.log_grid(0.8, 9.0, 6)
    chosen = pipe.calibrate(images, labels, 0.1, 2, "epndc", candidates)
    assert pipe.classifier(float(np.float32(0.1)), "epndc").levels == chosen
    with pytest.raises(ValueError, match="`levels` .*calibrated for .*0.1001"):
        pipe.classifier(0.1001, "epndc", chosen)


def test_default_levels_fit_between_the_noise_and_the_largest_of_the_model():
    scheduler = DDPMScheduler(num_train_timesteps=100)  # up to about 1.3
    pipe = NoisedDiffusionClassifierPipeline(tiny_unet(3), scheduler)
    low, high = pipe.denoiser.sigma_range
    levels = pipe.classifier(0.5).levels
    assert 1.0 < min(levels.sigmas) < max(levels.sigmas) <= high < 1.5
    with pytest.raises(ValueError, match="`sigma` .*128"):
        pipe.calibrate(torch.rand(3, 1, 8, 8), [0, 1, 2], sigma=128)


def test_the_level_that_tells_the_classes_apart_is_found(shades):
    images, labels = shades
    pipe = knowing_pipe(lambda sigma: (sigma - 2).abs() < 0.1)
    candidates = NoiseLevels((0.8, 2.0, 5.0), (1, 1, 1))
    assert pipe.calibrate(images, labels, 0.25, 3, "epndc", candidates).sigmas == (2.0,)
    assert pipe.calibrate(images, labels, 0.25, 3, "epndc", candidates, quantile=None).sifting is None
    assert pipe(images, sigma=0.25, method="epndc", seed=0).labels == labels
    with pytest.raises(ValueError, match="tell the classes"):
        knowing_pipe(lambda sigma: sigma < 0).calibrate(images, labels, 0.25, 3, "epndc", candidates)


@pytest.mark.parametrize(
    "arguments, match",
    [
        ({"labels": [0, 1, 2]}, "`labels` must be one integer for each of the 4 images, got the shape .3,."),
        ({"labels": [0.0, 1.0, 2.0, 0.0]}, "`labels` must be one integer .*got the shape .* type float64"),
        ({"labels": [0, 1, 2, 3]}, "`labels` must be from 0 to 2, got 0 to 3"),
        ({"labels": [0, 1, 1, -1]}, "`labels` must be from 0 to 2, got -1"),
        ({"labels": [0, 1, 1, 0]}, r"`labels` must have .*got none of the classes \[2\]"),
        ({"num_levels": 0}, "`num_levels`"),
        ({"num_levels": 13}, "`num_levels`"),
        ({"quantile": 0.0}, "`quantile`"),
        ({"quantile": 1.5}, "`quantile`"),
        ({"method": "dc"}, "`sigma`"),
        ({"candidates": NoiseLevels((0.4, 1.0), (1, 1))}, "`levels` .*above 0.5"),
    ],
)
@pytest.mark.parametrize("sift", ["features", "losses"])
def test_refuses_calibration_before_any_network_call(pipe, images, monkeypatch, sift, arguments, match):
    def never(*args, **kwargs):
        raise AssertionError("work was done")

    monkeypatch.setattr(pipe.unet, "forward", never)
    with pytest.raises(ValueError, match=match):
        pipe.calibrate(**{"images": images, "labels": [0, 1, 2, 0], "sigma": 0.25, "sift": sift, **arguments})


def test_thresholds_do_not_depend_on_the_type_of_the_quantile():
    """In half precision, ranks among thousands of copies would be rounded to multiples of 2 or 4."""
    errors, labels = synthetic_errors([1.5, 1.0, 0.5], num_images=4_000)
    thresholds = [sift_thresholds(errors, np.ones(3), labels, kind(np.float16(0.998))) for kind in (np.float16, float)]
    np.testing.assert_array_equal(*thresholds)

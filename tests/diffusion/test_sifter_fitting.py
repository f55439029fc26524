import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from helpers.networks import tiny_unet
from helpers.sifters import shades

from diffusers_ndc import Denoiser, NoisedDiffusionClassifier
from diffusers_ndc.diffusion.sifter_fitting import Moments, SiftFitting, fit_sift, folds_of, noisy_copies


def blobs(count, num_classes=3, num_features=4, seed=0):
    """Gaussian features with one covariance and a mean for each class, their labels, and the means."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(num_classes, num_features, generator=torch.Generator().manual_seed(7), dtype=torch.double)
    mixing = torch.randn(num_features, num_features, generator=torch.Generator().manual_seed(8), dtype=torch.double)
    labels = torch.arange(count) % num_classes
    noise = torch.randn(count, num_features, generator=generator, dtype=torch.double) @ mixing.T
    return means[labels] + noise + 5, labels, means, mixing @ mixing.T


def moments_of(features, labels, num_classes=3):
    moments = Moments(num_classes, features.shape[1])
    for part in range(0, len(features), 100):
        moments.add(features[part : part + 100], labels[part : part + 100])
    return moments


def scores(parameters, features):
    normal = (features - parameters["mean"]) / parameters["scale"]
    return normal @ parameters["weight"].T + parameters["bias"]


def test_the_discriminant_is_bayes_rule_for_gaussian_features():
    features, labels, means, covariance = blobs(60_000)
    logits = scores(moments_of(features, labels).discriminant(), features[:100]).log_softmax(1)
    inverse = torch.linalg.inv(covariance)
    apart = (features[:100] - 5)[:, None] - means
    exact = (-torch.einsum("nkd,de,nke->nk", apart, inverse, apart) / 2).log_softmax(1)
    assert (logits.argmax(1) == exact.argmax(1)).double().mean() > 0.97
    # a covariance with 1% of the identity in it is a little wider
    slope = (logits * exact).sum() / exact.square().sum()
    assert 0.7 < slope < 1.05 and torch.corrcoef(torch.stack([logits.flatten(), exact.flatten()]))[0, 1] > 0.99


def test_moments_that_are_left_out_do_not_count():
    features, labels, *_ = blobs(600)
    some, others = moments_of(features[:300], labels[:300]), moments_of(features[300:], labels[300:])
    without = Moments.total([some, others]).discriminant(left_out=others)
    for name, value in some.discriminant().items():
        torch.testing.assert_close(without[name], value, msg=name)


def test_more_features_than_images_and_constant_features():
    features = torch.cat([torch.randn(6, 30, dtype=torch.double), torch.ones(6, 2, dtype=torch.double)], dim=1)
    parameters = moments_of(features, torch.tensor([0, 1, 2, 0, 1, 2])).discriminant()
    assert all(value.isfinite().all() for value in parameters.values())


def test_every_class_is_in_every_other_fold():
    labels = np.repeat(np.arange(5), [2, 3, 4, 5, 9])
    folds = folds_of(labels)
    for fold in range(4):
        assert set(labels[folds != fold]) == set(range(5))


def classifier(sigma=0.25):
    return NoisedDiffusionClassifier(Denoiser(tiny_unet(), DDPMScheduler(), null_class=3), sigma)


def test_a_class_that_features_tell_has_a_small_gap_and_one_that_they_do_not_a_wide_one():
    """The gap is that of images that a map has not seen: labels at random keep nearly all classes in play.

    Negative control: by a map that has seen them, the gap would be much smaller.
    """
    images, labels = shades(120)
    told = fit_sift(classifier(), images, np.array(labels), SiftFitting(num_copies=1))
    untold = fit_sift(classifier(), images, np.random.default_rng(0).permutation(labels), SiftFitting(num_copies=1))
    assert told.sift.gap < 10 < untold.sift.gap
    kept = [number_in_play(fit.sift, images) for fit in (told, untold)]
    assert kept[0] < 2.2 < 2.7 < kept[1]
    assert untold.sift.gap > 3 * gap_of_seen_images(untold.sift, images, np.random.default_rng(0).permutation(labels))


def gap_of_seen_images(sift, images, labels):
    """What the gap would be by the copies that the map was fitted to."""
    noisy, _ = noisy_copies(images, np.arange(len(images)), 0, 0.25, seed=0)
    scores = scores_of(sift, noisy)
    return float(np.quantile((scores.amax(1) - scores[np.arange(len(labels)), labels]).numpy(), 0.995))


def scores_of(sift, noisy):
    sifted = NoisedDiffusionClassifier(classifier().denoiser, sift=sift.with_rule(loss_weight=1.0), sigma=0.25, seed=0)
    with torch.no_grad():
        return -sifted.open_copies(sifted._copies(noisy, None)).losses


def number_in_play(sift, images):
    noise = 0.25 * torch.randn(images.shape, generator=torch.Generator().manual_seed(3))
    return sift.candidates(scores_of(sift, images + noise)).sum(1).double().mean().item()


def test_calibrating_twice_and_in_other_batches_gives_the_same_sift():
    images, labels = shades(24)
    first = fit_sift(classifier(), images, np.array(labels), SiftFitting(num_copies=2), seed=1)
    small = NoisedDiffusionClassifier(classifier().denoiser, 0.25, batch_size=5)
    second = fit_sift(small, images, np.array(labels), SiftFitting(num_copies=2), seed=1)
    for one, other in zip(first.sift.parameters(), second.sift.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
    assert first.sift.gap == pytest.approx(second.sift.gap, rel=1e-2)

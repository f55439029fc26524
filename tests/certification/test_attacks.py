"""Attacks on smoothed classifiers: a half-space, whose smoothed version is known exactly, and tiny diffusion ones."""

import doctest
import math

import foolbox
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from helpers.networks import tiny_unet

from diffusers_ndc import Denoiser, NoisedDiffusionClassifier, NoiseLevels, SmoothedClassifier, attack
from diffusers_ndc.certification import attacks as attacks_module
from diffusers_ndc.certification.attacks import GRADIENTS, SmoothAdv


SIGMA = 0.25
NORMAL = torch.tensor([3.0, -1, 2, 0, 1, 1, -2, 1, 0, 2, -1, 1, 1, 0, -1, 1]).view(1, 4, 4)
NORMAL = NORMAL / NORMAL.norm()


def halfspace(images):
    """Class 1 where the image lies on the side of `NORMAL`; logits in units that say nothing."""
    score = 1e4 * ((images - 0.5) * NORMAL.to(images)).flatten(1).sum(1)
    return torch.stack([-score, score], dim=1)


def at_distance(distance):
    """An image of class 1 at this l2 distance from the boundary: the true radius of the smoothed classifier."""
    return 0.5 + distance * NORMAL


def climb(gradient="backprop", classifier=halfspace, image=None, draws=200, radius=0.3, grid=None):
    image = at_distance(0.3) if image is None else image
    return SmoothAdv(SmoothedClassifier(classifier, SIGMA, grid), None, image, 1, radius, gradient, draws, 50, 0)


@pytest.mark.parametrize("gradient, draws", [("backprop", 2), ("score-function", 200)])
def test_an_attack_finds_the_nearest_other_class_and_nothing_before_it(gradient, draws):
    smoothed, settings = SmoothedClassifier(halfspace, SIGMA), {"gradient": gradient, "draws": draws, "seed": 3}
    inside = attack(smoothed, at_distance(0.3), 1, 0.27, n=10_000, **settings)
    outside = attack(smoothed, at_distance(0.3), 1, 0.36, n=10_000, **settings)
    assert (inside.outcome, outside.outcome) == ("kept", "fallen")
    assert outside.prediction.label == 0 and 0.35 < outside.distance < 0.36
    undecided = attack(smoothed, at_distance(0.3), 1, 0.3, n=100, **settings)
    assert undecided.outcome == "abstained" and undecided.prediction.label is None


@pytest.mark.parametrize("gradient, draws, cosine", [("backprop", 2, 0.99999), ("score-function", 1_000, 0.98)])
def test_the_gradient_points_where_the_exact_one_does(gradient, draws, cosine):
    slope, rival = climb(gradient, draws=draws).gradient(at_distance(0.3), 0, "test", 0)
    assert rival == 0
    assert torch.cosine_similarity(slope.flatten(), -NORMAL.double().flatten(), dim=0) > cosine


def test_both_gradients_have_the_exact_size():
    """E[sigmoid(g / s)] of a Gaussian gap g, by the average over its density, in units of the copies."""
    size, spread, gap = 4_000, 2e4 * SIGMA, -2e4 * 0.3
    nodes = torch.linspace(-8, 8, 4_001, dtype=torch.double)
    density = (-(nodes**2) / 2).exp() / math.sqrt(2 * math.pi) * (nodes[1] - nodes[0])
    for gradient in GRADIENTS:
        search = climb(gradient, draws=size)
        assert search.scale == pytest.approx(spread, rel=0.05)
        error = ((gap + spread * nodes) / search.scale).sigmoid()
        exact = (density * error * (1 - error)).sum().item() * 2e4 / search.scale
        slope, _ = search.gradient(at_distance(0.3), 0, "test", 0)
        assert -(slope / size * NORMAL).sum().item() == pytest.approx(exact, rel=0.1)


def test_batches_change_nothing_but_memory():
    sizes = []

    def watched(images):
        sizes.append(len(images))
        return halfspace(images)

    found = []
    for batch_size, parts in ((40, [40]), (6, [6] * 6 + [4])):
        sizes.clear()
        smoothed, settings = SmoothedClassifier(watched, SIGMA), {"steps": 2, "draws": 40, "n": 1, "seed": 0}
        found.append(attack(smoothed, at_distance(0.3), 1, 0.2, batch_size=batch_size, **settings).image)
        assert sizes == [*parts, *parts, *parts, 1]  # the scale, two steps, the judgement
    assert torch.allclose(*found, atol=1e-6)


def test_the_image_found_is_in_the_open_ball_and_the_box():
    """Its centre on the border of the box in most pixels, as a digit's are; the ball is exhausted all the same."""
    generator = torch.Generator().manual_seed(0)
    image = (torch.rand(1, 28, 28, generator=generator) * 3 - 1).clamp(0, 1)
    normal = torch.randn(28 * 28, 1, generator=generator)
    smoothed = SmoothedClassifier(lambda images: images.flatten(1) @ torch.cat([normal, -normal], 1).to(images), 1)
    for dtype in (torch.float32, torch.float64):
        for radius in (0.01, 0.5, 2.0):
            found = attack(smoothed, image.to(dtype), 0, radius, steps=3, draws=2, n=1, seed=0, restarts=2)
            distance = (found.image.double() - image.to(dtype).double()).norm().item()
            assert found.image.dtype == dtype and 0 <= found.image.min() and found.image.max() <= 1
            assert 0.9999 * radius < distance < radius and found.distance == distance


def test_a_small_ball_of_eight_bits_is_the_image_itself():
    """No step of 1/255 fits into it."""
    found = attack(SmoothedClassifier(halfspace, SIGMA, grid=16), torch.full((1, 4, 4), 0.2), 1, 0.003, steps=1, n=1)
    assert found.distance == 0


@pytest.mark.parametrize("radius", [0.02, 0.3, 1.0])
def test_certificates_of_eight_bits_are_attacked_by_images_of_eight_bits(radius):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(-100, 356, (1, 4, 4), generator=generator).clamp(0, 255) / 255
    found = attack(SmoothedClassifier(halfspace, SIGMA, grid=16), image, 1, radius, steps=3, draws=2, n=1, seed=0)
    steps = 255 * found.image.double()
    assert (steps - steps.round()).abs().max() < 1e-4 and 0 <= steps.min() and steps.max() <= 255
    assert radius - 2 / 255 < found.distance < radius


def test_projection_is_the_nearest_point_of_ball_and_box():
    """Dykstra's algorithm, which projects on both in turn, ends there too."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 4, 4, generator=generator, dtype=torch.double).round(decimals=1)
    search, offset = climb(image=image, radius=0.8), torch.randn(1, 4, 4, generator=generator, dtype=torch.double)
    point, from_ball, from_box = offset, 0.0, 0.0
    for _ in range(3_000):
        in_ball = point + from_ball
        in_ball = in_ball * min(1.0, 0.8 / in_ball.norm().item())
        from_ball = point + from_ball - in_ball
        point = (image + in_ball + from_box).clamp(0, 1) - image
        from_box = in_ball + from_box - point
    assert (image + offset).max() > 1 and offset.norm() > 0.8
    assert torch.allclose(search.project(offset), point, atol=1e-5)
    assert torch.allclose(search.project(0.1 * offset), (image + 0.1 * offset).clamp(0, 1) - image)


def test_a_run_can_be_repeated():
    smoothed = SmoothedClassifier(halfspace, SIGMA)
    settings = {"radius": 0.3, "steps": 2, "draws": 6, "restarts": 2, "gradient": "score-function", "n": 20}
    first, again, other = (attack(smoothed, at_distance(0.3), 1, **settings, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(first.image, again.image) and first.prediction == again.prediction
    assert not torch.equal(first.image, other.image)
    fresh = attack(smoothed, at_distance(0.3), 1, **settings)
    repeated = attack(smoothed, at_distance(0.3), 1, **settings, seed=fresh.seed)
    assert torch.equal(fresh.image, repeated.image) and fresh.prediction == repeated.prediction


def test_another_start_finds_what_the_first_one_cannot():
    """No gradient at the image itself: its noise never reaches the slope, that of other starts does."""
    far = 2.0

    def cliff(images):
        score = 10 * torch.relu((images - 0.5).flatten(1).norm(dim=1) - far)
        return torch.stack([torch.ones_like(score), score], dim=1)

    smoothed, image = SmoothedClassifier(cliff, 0.01), torch.full((1, 8, 8), 0.5)
    settings = {"steps": 5, "draws": 4, "seed": 0}
    assert attack(smoothed, image, 0, 2.5, **settings).outcome == "kept"
    assert attack(smoothed, image, 0, 2.5, restarts=2, **settings).outcome == "fallen"


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_the_rival_follows_the_copies(gradient):
    """Three classes by three pixels: the steps leave the label for the other class that has come closest."""

    def brightest(images):
        return images.flatten(1)[:, :3]

    start, later = (torch.tensor(pixels).view(1, 2, 2) for pixels in ([0.6, 0.5, 0.4, 0.5], [0.6, 0.3, 0.7, 0.5]))
    search = SmoothAdv(SmoothedClassifier(brightest, 0.05), None, start, 0, 0.4, gradient, 1_000, 1_000, 0)
    assert search.rival == 1
    for image, followed, rival in ((start, 1, 1), (later, 1, 2), (later, 2, 2)):
        slope, found = search.gradient(image, followed, "test", 0)
        assert found == rival and slope.argmin() == 0 and slope.argmax() == followed
    assert search.lead(start) < 0 < search.lead(later)


def test_a_surrogate_gives_the_gradient_and_not_the_judgement():
    def hard(images):
        return halfspace(images).argmax(1)[:, None].eq(torch.arange(2)).float()

    smoothed, settings = SmoothedClassifier(hard, SIGMA), {"draws": 2, "n": 10_000, "seed": 0}
    with pytest.raises(ValueError, match="`gradient` must be 'score-function' .* got 'backprop'"):
        attack(smoothed, at_distance(0.3), 1, 0.36, **settings)
    assert attack(smoothed, at_distance(0.3), 1, 0.36, surrogate=halfspace, **settings).outcome == "fallen"
    inert = attack(smoothed, at_distance(0.3), 1, 0.36, surrogate=lambda images: 0 * halfspace(images), **settings)
    assert inert.outcome == "kept" and inert.distance == 0
    votes = attack(smoothed, at_distance(0.3), 1, 0.4, gradient="score-function", **{**settings, "draws": 400})
    assert votes.outcome == "fallen"  # by votes alone, a classifier without any gradient


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"smoothed": halfspace}, "`smoothed` must be of type SmoothedClassifier, got function"),
        ({"image": [0.5]}, "`images` must be .* got list"),
        ({"image": torch.zeros(1, 1, 4, 4)}, r"`images` .*\(1, 1, 4, 4\)"),
        ({"image": torch.full((1, 4, 4), 1.5)}, r"`images` must .*\[0, 1\].* got"),
        ({"image": torch.zeros(1, 4, 4, dtype=torch.int)}, "`images` must be .*floating-point.* got"),
        ({"label": 2}, "`label` must be a class from 0 to 1, got 2"),
        ({"label": -1}, "`label` must be .* got -1"),
        ({"label": True}, "`label` must be .* got True"),
        ({"radius": 0}, r"`radius` must be a finite number above 0 \(pixel units\), got 0"),
        ({"radius": math.nan}, "`radius` must be .* got nan"),
        ({"radius": "1"}, "`radius` must be .* got '1'"),
        ({"steps": 0}, "`steps` must be an integer from 1 to .* got 0"),
        ({"draws": 3}, "`draws` must be an even number.* got 3"),
        ({"batch_size": 1}, "`batch_size` must be an even number.* got 1"),
        ({"restarts": 1.0}, "`restarts` must be .* got 1.0"),
        ({"gradient": "analytic"}, "`gradient` must be one of .* got 'analytic'"),
        ({"surrogate": "unet"}, "`surrogate` must be .* got str"),
        ({"n": 0}, "`n` must be .* got 0"),
        ({"alpha": 1.5}, "`alpha` must be .* got 1.5"),
        ({"seed": -1}, "`seed` must be .* got -1"),
    ],
)
def test_bad_input_raises(changes, message):
    arguments = {
        "smoothed": SmoothedClassifier(halfspace, SIGMA),
        "image": at_distance(0.3),
        "label": 1,
        "radius": 0.3,
    }
    with pytest.raises((TypeError, ValueError), match=message):
        attack(**{**arguments, **changes})


def diffusion(method="apndc", sigma=SIGMA, sifted=False, dtype=torch.float32, **settings):
    """A noised diffusion classifier of three classes, all of them at two levels, or two at the second."""
    unet, levels = tiny_unet().to(dtype), NoiseLevels((1.0, 3.0), (1.0, 0.3))
    levels = levels.sifted(1e6, max_classes=2) if sifted else levels
    return NoisedDiffusionClassifier(Denoiser(unet, DDPMScheduler(), null_class=3), sigma, method, levels, **settings)


@pytest.mark.parametrize(
    "method, sigma, sifted",
    [
        ("apndc", 0.25, False),
        ("apndc", 0.25, True),
        ("epndc", 0.25, False),
        ("apndc-clean", 0.25, False),
        ("dc", 0, False),
    ],
)
def test_logits_of_a_diffusion_classifier_have_the_gradient_that_differences_show(method, sigma, sifted, images):
    classifier = diffusion(method, sigma, sifted, torch.double, seed=0)
    generator = torch.Generator().manual_seed(0)
    image, along, classes = (
        torch.randn(shape, generator=generator, dtype=torch.double) for shape in ((1, 1, 8, 8), (1, 1, 8, 8), (3,))
    )
    image = images[:1].double() + sigma * image
    leaf = image.clone().requires_grad_()
    (slope,) = torch.autograd.grad((classifier(leaf) * classes).sum(), leaf)
    assert classifier.evaluations == classifier.evaluations_per_image - sifted
    with torch.no_grad():
        high, low = ((classifier(image + step * along) * classes).sum() for step in (1e-5, -1e-5))
    assert (slope * along).sum().item() == pytest.approx(((high - low) / 2e-5).item(), rel=1e-6)
    assert slope.abs().min() > 0
    assert all(weight.grad is None for weight in classifier.parameters())


@pytest.mark.parametrize("gradient, draws", [("backprop", 2), ("score-function", 400)])
def test_a_diffusion_classifier_is_climbed(gradient, draws, images):
    """The rival of a randomized, sifting classifier's label gains a good deal on it."""
    smoothed = SmoothedClassifier(diffusion(sifted=True), SIGMA)
    found = attack(smoothed, images[0], 1, 3.0, 4, draws, gradient=gradient, n=20, seed=0)
    judge = SmoothAdv(smoothed, None, images[0], 1, 3.0, gradient, 100, 50, 1)
    before, after = judge.lead(images[0]), judge.lead(found.image)
    assert after > before + 0.05
    assert found.distance < 3 and found.image.shape == images[0].shape and not found.image.requires_grad


def test_an_attack_library_takes_the_classifier_as_a_torch_module(images):
    """Foolbox's l2 projected gradient descent on the clean diffusion classifier: images in [0, 1] to logits."""
    classifier = diffusion("dc", 0, seed=0).eval()
    labels = classifier(images).argmax(1)

    def gaps(images):
        logits = classifier(images).detach()
        return logits.gather(1, labels[:, None]) - logits.scatter(1, labels[:, None], -math.inf).amax(1, keepdim=True)

    model = foolbox.PyTorchModel(classifier, bounds=(0, 1), device="cpu")
    assert foolbox.accuracy(model, images, labels) == 1
    pgd = foolbox.attacks.L2PGD(steps=5, rel_stepsize=0.5, random_start=False)
    _, attacked, fooled = pgd(model, images, labels, epsilons=[0.5, 2.0])
    assert (gaps(images) > gaps(attacked[0])).all() and (gaps(attacked[0]) > gaps(attacked[1])).all()
    for found, fell, epsilon in zip(attacked, fooled, (0.5, 2.0), strict=True):
        assert (found - images).flatten(1).norm(dim=1).max() <= epsilon + 1e-5
        assert 0 <= found.min() and found.max() <= 1 and torch.equal(fell, gaps(found)[:, 0] < 0)


def test_the_example_of_the_docstring_runs():
    result = doctest.testmod(attacks_module)
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize("number_type", [np.float16, np.float32])
def test_the_type_of_the_radius_does_not_move_the_ball(number_type):
    """`INSIDE` is 1 in half precision, and the ball would be closed."""
    smoothed, radius = SmoothedClassifier(halfspace, SIGMA), number_type(0.3)
    found = [attack(smoothed, at_distance(0.5), 1, r, steps=3, n=20, seed=0) for r in (radius, float(radius))]
    assert torch.equal(found[0].image, found[1].image) and found[0].distance < float(radius)

import math

import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler
from helpers.mixtures import SIDE, SPREAD, GaussianMixtureNetwork, mixture_images
from helpers.networks import tiny_unet
from torch import nn

from diffusers_ndc import Denoiser, NoisedDiffusionClassifier, NoiseLevels
from diffusers_ndc.common.copies import Copy, decide_all


@pytest.fixture
def mixture():
    means = torch.randn(3, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.25
    scheduler = EDMEulerScheduler(sigma_min=1e-3, sigma_max=200.0)
    return Denoiser(GaussianMixtureNetwork(means), scheduler, null_class=3)


def log_likelihoods(denoiser, images, tau):
    """log p_tau(x given y) of pixel-unit images, up to a constant common to the classes."""
    difference = (2 * images - 1).unsqueeze(1) - denoiser.unet.means.detach()
    return -difference.square().flatten(2).sum(2) / (2 * (SPREAD**2 + tau**2))


def contrasts(values):
    """Differences between the classes, free of what they have in common."""
    return values - values.mean(dim=1, keepdim=True)


def test_dc_differences_are_log_likelihood_ratios(mixture):
    """The ELBO's loss integrated over all noise levels is minus the log-likelihood, exactly for a perfect denoiser."""
    labels = torch.arange(3)
    images = mixture_images(mixture, labels, tau=0)
    levels = NoiseLevels.log_grid(0.005, 150.0, 400).repeat(20)
    logits = NoisedDiffusionClassifier(mixture, levels=levels, batch_size=4096, seed=0)(images)
    exact = log_likelihoods(mixture, images, tau=0)
    torch.testing.assert_close(contrasts(logits), contrasts(exact), rtol=0.05, atol=0.15)


def test_epndc_differences_are_log_likelihood_ratios_of_the_noisy_image(mixture):
    tau = 0.5
    images = mixture_images(mixture, torch.arange(3), tau)
    levels = NoiseLevels.log_grid(tau * 1.001, 150.0, 400).repeat(20)
    classifier = NoisedDiffusionClassifier(mixture, tau / 2, "epndc", levels, batch_size=4096, seed=0)
    exact = log_likelihoods(mixture, images, tau)
    torch.testing.assert_close(contrasts(classifier(images)), contrasts(exact), rtol=0.1, atol=0.2)


@pytest.mark.parametrize("method", ["epndc", "apndc", "apndc-clean"])
def test_noised_classifiers_rank_as_bayes_rule_does(mixture, method):
    """Wherever the exact posterior prefers a class clearly, so does the classifier."""
    tau, labels = 0.5, torch.arange(60) % 3
    images = mixture_images(mixture, labels, tau, seed=1)
    levels = NoiseLevels.log_grid(tau * 1.05, 60.0, 24).repeat(8)
    logits = NoisedDiffusionClassifier(mixture, tau / 2, method, levels, batch_size=4096, seed=0)(images)
    exact = log_likelihoods(mixture, images, tau)
    top = exact.sort(dim=1, descending=True).values
    clear = top[:, 0] - top[:, 1] > 1.0
    assert clear.sum() > 20
    assert (logits.argmax(1) == exact.argmax(1))[clear].all()


@pytest.mark.parametrize("method", ["dc", "epndc", "apndc", "apndc-clean"])
def test_logits_depend_on_no_batch(unet, images, method):
    """Any network batch size, one image alone or among others: the same noise, the same logits."""
    denoiser, sigma = Denoiser(unet, DDPMScheduler(), null_class=3), 0.0 if method == "dc" else 0.25
    levels, seeds = NoiseLevels.log_grid(0.6, 9.0, 5), [11, 12, 13, 14]
    reference = NoisedDiffusionClassifier(denoiser, sigma, method, levels)(images, seeds=seeds)
    for batch_size in (1, 7, 1000):
        classifier = NoisedDiffusionClassifier(denoiser, sigma, method, levels, batch_size)
        torch.testing.assert_close(classifier(images, seeds=seeds), reference, rtol=1e-4, atol=1e-4)
    for i, image in enumerate(images):
        alone = classifier(image[None], seeds=[seeds[i]])
        torch.testing.assert_close(alone[0], reference[i], rtol=1e-4, atol=1e-4)


class Recorder(nn.Module):
    """Passes calls on to a network and keeps what it was called with."""

    def __init__(self, network):
        super().__init__()
        self.network, self.calls = network, []
        self.config, self.class_embedding = network.config, network.class_embedding

    dtype = property(lambda self: self.network.dtype)

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        self.calls.append((sample, timestep, class_labels))
        return self.network(sample, timestep, class_labels, return_dict)


def test_classes_share_their_noise_and_batches_are_full(unet, images):
    network = Recorder(unet)
    levels = NoiseLevels.log_grid(0.6, 9.0, 4)
    classifier = NoisedDiffusionClassifier(Denoiser(network, DDPMScheduler()), levels=levels, batch_size=10)
    classifier(images)
    sizes = [len(sample) for sample, _, _ in network.calls]
    assert len(sizes) == math.ceil(64 / 10) and sum(sizes) == 4 * classifier.evaluations_per_image

    inputs = torch.cat([sample for sample, _, _ in network.calls]).view(4, 4, 4, -1)  # images, levels, classes, pixels
    labels = torch.cat([labels for _, _, labels in network.calls]).view(4, 4, 4)
    assert (labels == torch.arange(4)).all()
    assert (inputs == inputs[:, :, :1]).all()
    pairs = inputs[:, :, 0].flatten(0, 1)
    assert len(pairs.unique(dim=0)) == len(pairs), "two levels or images share their noise"


def test_no_network_batch_grows_with_images_classes_or_levels(images):
    """The null denoiser as class mean included."""
    network = Recorder(tiny_unet(num_class_embeds=20))
    classifier = NoisedDiffusionClassifier(Denoiser(network, DDPMScheduler()), 0.25, batch_size=8)
    classifier(images.repeat(2, 1, 1, 1))
    assert max(len(sample) for sample, _, _ in network.calls) == 8
    assert sum(len(sample) for sample, _, _ in network.calls) == 8 * classifier.evaluations_per_image


def sifted_by_hand(losses, rule):
    """The rule written out for one image: weighted losses of shape (levels, classes) to the class that wins."""
    alive, evaluations, total = set(range(losses.shape[1])), 0, [0.0] * losses.shape[1]
    for level in range(len(losses)):
        if len(alive) == 1:
            break
        evaluations += len(alive)
        for y in alive:
            total[y] += losses[level, y].item()
        best = min(total[y] for y in alive)
        if level < len(losses) - 1:
            scale = best if rule.sifting.relative else 1.0
            alive = {y for y in alive if total[y] - best <= rule.sifting.thresholds[level] * scale}
            alive = set(sorted(alive, key=lambda y: total[y])[: rule.sifting.max_classes])
    return min(alive, key=lambda y: total[y]), evaluations


@pytest.mark.parametrize("threshold, max_classes", [(0.0, None), (0.3, None), (1.0, 2), (1e6, 3), (1e6, None)])
@pytest.mark.parametrize("batch_size, relative", [(3, False), (64, False), (5, True)])
def test_sifting_is_the_rule_applied_to_each_image_alone(images, threshold, max_classes, batch_size, relative):
    denoiser = Denoiser(tiny_unet(num_class_embeds=6), DDPMScheduler())
    levels, seeds = NoiseLevels.log_grid(0.8, 9.0, 4), [1, 2, 3, 4]
    full = NoisedDiffusionClassifier(denoiser, 0.25, "epndc", levels)
    errors = full.squared_errors(images, seeds)
    losses = errors * errors.new_tensor(levels.weights)[:, None]
    rule = levels.sifted(threshold / 200 if relative else threshold, max_classes, relative)
    sifted = NoisedDiffusionClassifier(denoiser, 0.25, "epndc", rule, batch_size)
    logits = sifted(images, seeds)
    expected = [sifted_by_hand(image_losses, rule) for image_losses in losses]
    assert logits.argmax(1).tolist() == [winner for winner, _ in expected]
    assert sifted.evaluations == sum(evaluations for _, evaluations in expected)
    if threshold == 1e6 and max_classes is None:
        torch.testing.assert_close(logits, full(images, seeds), rtol=1e-4, atol=1e-4)
    else:
        assert sifted.evaluations < 4 * sifted.evaluations_per_image
    alone = sifted(images[2:3], seeds[2:3])
    torch.testing.assert_close(alone, logits[2:3], rtol=1e-4, atol=1e-4)


def test_sifted_logits_are_finite_ordered_and_differentiable(images):
    denoiser = Denoiser(tiny_unet(num_class_embeds=6), DDPMScheduler(), null_class=5)
    levels = NoiseLevels.log_grid(0.8, 9.0, 4).sifted(0.2)
    x = images.clone().requires_grad_()
    logits = NoisedDiffusionClassifier(denoiser, 0.25, levels=levels, seed=0)(x)
    assert logits.isfinite().all() and logits.shape == (4, 5)
    top = logits.sort(1).values
    assert (top[:, -1] > top[:, -2]).all()
    logits.max(1).values.sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().max() > 0


def test_sifting_a_thousand_classes_costs_far_less_than_a_full_search():
    """A network with known losses: each class draws its own shade, and the image is the shade of one of them."""
    num_classes = 1_000

    def shades(class_labels):
        return (2 * class_labels / (num_classes - 1) - 1).view(-1, 1, 1, 1)

    unet = tiny_unet(num_class_embeds=num_classes)
    unet.forward = lambda sample, timestep, class_labels, return_dict: (shades(class_labels).expand_as(sample),)
    denoiser = Denoiser(unet, DDPMScheduler(prediction_type="sample"))
    truth = torch.arange(0, num_classes, 9)
    images = (shades(truth).expand(-1, 1, 8, 8) + 1) / 2
    noisy = images + 0.05 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    levels, seeds = NoiseLevels.log_grid(0.3, 2.0, 6), list(range(len(truth)))
    full = NoisedDiffusionClassifier(denoiser, 0.05, "epndc", levels, 4096)
    sifted = NoisedDiffusionClassifier(denoiser, 0.05, "epndc", levels.sifted(20.0, max_classes=50), 4096)
    assert (sifted(noisy, seeds).argmax(1) == full(noisy, seeds).argmax(1)).float().mean() >= 0.99
    assert full.evaluations == len(truth) * 6 * num_classes
    assert sifted.evaluations <= len(truth) * (num_classes + 5 * 50)


def test_copies_at_different_levels_fill_the_batches(images):
    """Sifted copies leave holes in a batch that goes level by level; pooled with others they leave hardly any."""
    network = Recorder(tiny_unet(num_class_embeds=11))
    levels = NoiseLevels.log_grid(0.8, 9.0, 6).sifted(0.002, relative=True)
    classifier = NoisedDiffusionClassifier(Denoiser(network, DDPMScheduler(), null_class=10), 0.25, levels=levels)
    logits = classifier(images.repeat(100, 1, 1, 1), seeds=list(range(400)))
    sizes = [len(sample) for sample, _, _ in network.calls]
    assert len(logits) == 400 and classifier.evaluations == sum(sizes) < 0.7 * 400 * classifier.evaluations_per_image
    assert max(sizes) == 64 and sum(sizes) / len(sizes) > 0.95 * 64


def test_the_pool_has_room_for_copies_as_it_needs_them(images):
    """Few are under way at once, and each returns once, with its own count of evaluations and its own logits."""
    levels = NoiseLevels.log_grid(0.8, 9.0, 6).sifted(0.002, relative=True)
    denoiser = Denoiser(tiny_unet(num_class_embeds=11), DDPMScheduler(), null_class=10)
    classifier = NoisedDiffusionClassifier(denoiser, 0.25, levels=levels, batch_size=16)
    copies = [Copy(f"copy {index}", images[index % 4], seed=index) for index in range(200)]
    under_way, back = set(), {}

    def waiting():
        for copy in copies:
            under_way.add(copy.key)
            yield copy

    with torch.no_grad():
        for keys, logits, evaluations in decide_all(classifier.pool(), waiting()):
            assert len(under_way) <= 16 + 4 * 16 / 2, "more copies are open than fill four batches"
            under_way -= set(keys)
            back.update(zip(keys, zip(logits, evaluations, strict=True), strict=True))
    assert sorted(back) == sorted(copy.key for copy in copies) and not under_way
    assert sum(evaluations for _, evaluations in back.values()) == classifier.evaluations
    expected = classifier(torch.stack([copies[7].image]), seeds=[7])[0]
    torch.testing.assert_close(back["copy 7"][0], expected, rtol=1e-4, atol=1e-4)


def test_copies_without_a_seed_of_their_own_or_the_classifiers_are_refused(unet, images):
    """They would all meet the same noise, and their votes not be independent."""
    copies = [Copy(index, image, seed=None) for index, image in enumerate(images)]
    denoiser = Denoiser(unet, DDPMScheduler(), null_class=3)
    with torch.no_grad(), pytest.raises(ValueError, match="`seed` must be given"):
        NoisedDiffusionClassifier(denoiser, 0.25).pool().add(copies)
    fixed = NoisedDiffusionClassifier(denoiser, 0.25, seed=7)
    rows = {}
    with torch.no_grad():
        for keys, logits, _ in decide_all(fixed.pool(), copies):
            rows.update(zip(keys, logits, strict=True))
        torch.testing.assert_close(torch.stack([rows[index] for index in range(4)]), fixed(images))


def clear_winners(logits, by=1e-2):
    top = logits.float().sort(1).values
    return top[:, -1] - top[:, -2] > by


@pytest.mark.slow
def test_channels_last_compile_and_batch_size_change_nothing_but_ties(images):
    noisy, seeds = images.repeat(10, 1, 1, 1), list(range(40))
    levels = NoiseLevels.log_grid(0.8, 9.0, 3)

    def logits(unet, batch_size=64):
        classifier = NoisedDiffusionClassifier(Denoiser(unet, DDPMScheduler(), null_class=3), 0.25, None, levels)
        classifier.batch_size = batch_size
        with torch.no_grad():
            return classifier(noisy, seeds)

    plain = logits(tiny_unet())
    clear = clear_winners(plain)
    assert clear.float().mean() > 0.5
    compiled = tiny_unet()
    compiled.compile(backend="eager", dynamic=True)
    for other in (
        logits(tiny_unet(), batch_size=17),
        logits(tiny_unet().to(memory_format=torch.channels_last)),
        logits(compiled),
        logits(torch.compile(tiny_unet(), backend="eager", dynamic=True)),
    ):
        torch.testing.assert_close(other, plain, rtol=1e-3, atol=1e-3)
        assert (other.argmax(1) == plain.argmax(1))[clear].all()


def test_a_compiled_network_is_not_compiled_again_for_every_batch_size(images):
    """Sizes 1, 2 to 15 and 16 or more are compiled apart by torch; no other size is."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    unet, levels = tiny_unet(), NoiseLevels.log_grid(0.8, 9.0, 3).sifted(0.01, relative=True)
    unet.compile(backend="eager", dynamic=True)
    classifier = NoisedDiffusionClassifier(Denoiser(unet, DDPMScheduler(), null_class=3), 0.25, None, levels)
    with torch.no_grad():
        for batch_size in (1, 2, 5, 11, 16, 23, 30, 47):
            classifier.batch_size = batch_size
            classifier(images.repeat(8, 1, 1, 1))
    assert 1 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3


def test_autocast_is_on_record_and_close_to_single_precision(images):
    classifier = NoisedDiffusionClassifier(Denoiser(tiny_unet(), DDPMScheduler(), null_class=3), 0.25)
    assert classifier.settings["dtype"] == "float32"
    plain = classifier(images, seeds=[1, 2, 3, 4])
    with torch.autocast("cpu", torch.bfloat16):
        logits = classifier(images, seeds=[1, 2, 3, 4])
        assert classifier.settings["dtype"] == "autocast bfloat16"
    assert logits.dtype == torch.float32 and not torch.equal(logits, plain)
    torch.testing.assert_close(logits, plain, rtol=0.05, atol=1.0)


def test_noise_is_fresh_or_seeded(unet, images):
    denoiser = Denoiser(unet, DDPMScheduler())
    fresh = NoisedDiffusionClassifier(denoiser)
    assert fresh.randomized and not torch.equal(fresh(images), fresh(images))
    fixed = NoisedDiffusionClassifier(denoiser, seed=5)
    assert not fixed.randomized and torch.equal(fixed(images), fixed(images))
    twins = fixed(images[:1].repeat(2, 1, 1, 1))
    torch.testing.assert_close(twins[0], twins[1])


@pytest.mark.parametrize("method", ["dc", "epndc", "apndc", "apndc-clean"])
def test_logits_are_differentiable(images, method):
    """The gradient with respect to the image is that of finite differences."""
    unet = tiny_unet().double()
    denoiser = Denoiser(unet, EDMEulerScheduler(), null_class=3)
    levels = NoiseLevels.log_grid(0.6, 9.0, 3)
    classifier = NoisedDiffusionClassifier(denoiser, 0.0 if method == "dc" else 0.25, method, levels, seed=0)
    x = images[:1].double().requires_grad_()
    margin = classifier(x)[0, 0] - classifier(x)[0, 1]
    (gradient,) = torch.autograd.grad(margin, x)
    assert gradient.abs().max() > 0
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        up, down = (classifier(x + step * direction)[0] for step in (1e-4, -1e-4))
    slope = ((up[0] - up[1]) - (down[0] - down[1])) / 2e-4
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-7)


def test_bfloat16_network_gives_float32_logits(unet, images):
    reference = NoisedDiffusionClassifier(Denoiser(unet, EDMEulerScheduler()), seed=0)(images)
    logits = NoisedDiffusionClassifier(Denoiser(unet.to(torch.bfloat16), EDMEulerScheduler()), seed=0)(images)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, reference, rtol=0.05, atol=1.0)


def test_overflow_and_nan_are_errors_and_never_a_class(unet, images):
    with pytest.raises(FloatingPointError, match="must be finite"):
        NoisedDiffusionClassifier(Denoiser(unet, DDPMScheduler()))(images * math.nan)
    with torch.no_grad():
        unet.conv_out.weight.fill_(1e30)
    with pytest.raises(FloatingPointError, match="must be finite"):
        NoisedDiffusionClassifier(Denoiser(unet, DDPMScheduler()))(images)


@pytest.mark.parametrize(
    "arguments, error, match",
    [
        ({"sigma": -0.1}, ValueError, "`sigma`"),
        ({"sigma": "0.25"}, TypeError, "`sigma`"),
        ({"sigma": math.nan}, ValueError, "`sigma`"),
        ({"sigma": 1000.0}, ValueError, "noise that the model was trained with"),
        ({"sigma": 0.25, "method": "dc"}, ValueError, "`sigma` must be 0 .*got 0.25"),
        ({"method": "apndc"}, ValueError, "`sigma` must be above 0 .*got 0"),
        ({"method": "knn"}, ValueError, "`method`"),
        ({"levels": [1.0]}, TypeError, "`levels`"),
        ({"sigma": 0.25, "levels": NoiseLevels((0.5, 1.0), (1, 1))}, ValueError, "above 0.5"),
        (
            {"levels": NoiseLevels((1.0, 1000.0), (1, 1))},
            ValueError,
            "within the .* that the model was trained for, got 1 to 1000",
        ),
        ({"batch_size": 0}, ValueError, "`batch_size`"),
        ({"seed": -1}, ValueError, "`seed`"),
    ],
)
def test_refuses_settings(unet, arguments, error, match):
    with pytest.raises(error, match=match):
        NoisedDiffusionClassifier(Denoiser(unet, DDPMScheduler()), **arguments)


@pytest.mark.parametrize(
    "batch, error, match",
    [
        (torch.rand(1, 1, 8, 9), ValueError, "8 x 8 pixels"),
        (torch.rand(1, 3, 8, 8), ValueError, r"\(N, 1, height, width\)"),
        (torch.rand(8, 8), ValueError, "`images` must have the shape"),
        (torch.rand(0, 1, 8, 8), ValueError, "at least one image"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.long), TypeError, "floating-point"),
        ("digit.png", TypeError, "floating-point"),
    ],
)
def test_refuses_images(unet, batch, error, match):
    with pytest.raises(error, match=match):
        NoisedDiffusionClassifier(Denoiser(unet, DDPMScheduler()))(batch)


def test_a_network_of_any_size_still_needs_sides_that_halve():
    unet = tiny_unet(sample_size=None)
    classifier = NoisedDiffusionClassifier(Denoiser(unet, DDPMScheduler()))
    assert classifier(torch.rand(1, 1, 6, 10)).shape == (1, 4)
    with pytest.raises(ValueError, match="multiples of 2"):
        classifier(torch.rand(1, 1, 7, 10))

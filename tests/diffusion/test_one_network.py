"""Two networks of different origin in one denoiser: each in its own coordinates, with the noise levels it knows."""

import numpy as np
import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMScheduler,
    DDPMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    ScoreSdeVeScheduler,
)
from helpers.mixtures import SIDE, GaussianMixtureNetwork, UnconditionalMixtureNetwork, mixture_images
from helpers.networks import processor, tiny_unet, tiny_vit

from diffusers_ndc import DenoisedClassifier, Denoiser, NoisedDiffusionClassifier, NoiseLevels
from diffusers_ndc.checkpoints import VPPrecondScheduler
from diffusers_ndc.diffusion.sifter_fitting import SiftFitting, fit_sift
from diffusers_ndc.diffusion.trained_levels import default_levels


EDM = EDMEulerScheduler(sigma_min=1e-3, sigma_max=200.0)
LABELS = torch.tensor([0, 1, 2, 0])
LEVELS = NoiseLevels.log_grid(0.6, 9.0, 5)


def vp(prediction_type, **schedule):
    """A VP scheduler, and how its network understands and answers."""
    scheduler = DDPMScheduler(prediction_type=prediction_type, **schedule)
    a = scheduler.alphas_cumprod.double()
    log_sigmas = ((1 - a) / a).sqrt().log()

    def told(x_t, t):
        below = t.long().clamp(max=len(log_sigmas) - 2)
        sigma = torch.lerp(log_sigmas[below], log_sigmas[below + 1], t - below).exp()
        return x_t * (1 + sigma**2).sqrt(), sigma

    def answer(x, sigma, h):
        eps, a = (x - h) / sigma, 1 / (1 + sigma**2)
        return {"epsilon": eps, "v_prediction": a.sqrt() * eps - (1 - a).sqrt() * h, "sample": h}[prediction_type]

    return scheduler, told, answer


def flow():
    def told(x_s, t):
        sigma = t / (1000 - t)
        return x_s * (1 + sigma), sigma

    return FlowMatchEulerDiscreteScheduler(), told, lambda x, sigma, h: (x - h) / sigma - h


def edm(sigma_data):
    def told(sample, t):
        sigma = torch.exp(4 * t)
        return sample * (sigma**2 + sigma_data**2).sqrt(), sigma

    def answer(x, sigma, h):
        total = sigma**2 + sigma_data**2
        return (h - sigma_data**2 / total * x) / (sigma * sigma_data / total.sqrt())

    return EDMEulerScheduler(sigma_min=1e-3, sigma_max=200.0, sigma_data=sigma_data), told, answer


@pytest.fixture
def mixture():
    """Class-conditional under EDM, its last row being the mixture."""
    means = torch.randn(3, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.25
    return Denoiser(GaussianMixtureNetwork(means), EDM, null_class=3)


OTHERS = {
    "edm": lambda: edm(0.5),
    "edm, other data": lambda: edm(0.8),
    "epsilon": lambda: vp("epsilon"),
    "v": lambda: vp("v_prediction"),
    "sample": lambda: vp("sample"),
    "cosine, 4000 steps": lambda: vp("epsilon", beta_schedule="squaredcos_cap_v2", num_train_timesteps=4000),
    "flow": flow,
}


@pytest.mark.parametrize("method", ["apndc", "apndc-clean"])
@pytest.mark.parametrize("other", OTHERS)
def test_an_unconditional_network_in_other_coordinates_gives_the_same_logits(other, method, mixture):
    """As the mixture itself does under the one scheduler for both; misread by that scheduler it does not."""
    scheduler, told, answer = OTHERS[other]()
    second = UnconditionalMixtureNetwork(mixture.unet.means.detach(), told, answer)
    tau = 0.5
    images = mixture_images(mixture, torch.arange(9) % 3, tau)

    def logits(denoiser):
        return NoisedDiffusionClassifier(denoiser, tau / 2, method, LEVELS, seed=0)(images)

    expected = logits(mixture)
    pair = Denoiser(mixture.unet, EDM, unconditional_unet=second, unconditional_scheduler=scheduler, null_class=3)
    assert pair.null_source == "unconditional_unet"
    torch.testing.assert_close(logits(pair), expected, rtol=1e-4, atol=1e-4)
    if other != "edm":
        misread = Denoiser(mixture.unet, EDM, unconditional_unet=second, null_class=3)
        assert (logits(misread) - expected).abs().max() > 0.01


@pytest.mark.parametrize("scheduler", [DDPMScheduler(), EDMEulerScheduler(), CMStochasticIterativeScheduler()])
@pytest.mark.parametrize("other", [DDPMScheduler(beta_end=0.01), FlowMatchEulerDiscreteScheduler(), EDM])
def test_each_network_answers_as_it_does_alone(scheduler, other, unet, images):
    second = tiny_unet(None)
    pair = Denoiser(unet, scheduler, null_class=3, unconditional_unet=second, unconditional_scheduler=other)
    x, sigma = 2 * images - 1, torch.tensor([0.1, 0.5, 1.7, 20.0])
    assert torch.equal(pair(x, sigma, LABELS), Denoiser(unet, scheduler)(x, sigma, LABELS))
    assert torch.equal(pair(x, sigma), Denoiser(second, other, num_classes=0)(x, sigma))


@pytest.mark.parametrize("scheduler", [DDPMScheduler(), EDMEulerScheduler()])
def test_the_same_scheduler_given_twice_changes_nothing(scheduler, unet, images):
    second = tiny_unet(None)
    once, twice = (
        NoisedDiffusionClassifier(Denoiser(unet, scheduler, unconditional_unet=second, **given), 0.25, seed=0)(images)
        for given in ({}, {"unconditional_scheduler": type(scheduler).from_config(scheduler.config)})
    )
    assert torch.equal(once, twice)


def two(scheduler, other, table=None, other_table=None):
    """A pair of tiny networks, perhaps with tables of time steps."""

    def settings(size):
        return {} if size is None else {"time_embedding_type": "learned", "num_train_timesteps": size}

    return Denoiser(
        tiny_unet(**settings(table)),
        scheduler,
        null_class=3,
        unconditional_unet=tiny_unet(None, **settings(other_table)),
        unconditional_scheduler=other,
    )


def test_noise_of_the_image_is_what_the_unconditional_network_knows(images):
    """And only if it is told of it: epndc asks the class-conditional network alone."""
    pair = two(EDM, EDMEulerScheduler(sigma_min=0.5, sigma_max=2.0))
    assert (pair.sigma_range, pair.unconditional_sigma_range) == ((1e-3, 200.0), (0.5, 2.0))
    for sigma in (0.2, 1.0):
        for method in ("apndc", "apndc-clean"):
            with pytest.raises(ValueError, match="`sigma` must be from 0.25 to 1 .*got"):
                NoisedDiffusionClassifier(pair, sigma, method)
        with pytest.raises(ValueError, match="`sigma` must be from 0.25 to 1 .*got"):
            DenoisedClassifier(pair, tiny_vit(), processor(), sigma)
        assert NoisedDiffusionClassifier(pair, sigma, "epndc", seed=0)(images).isfinite().all()
    classifier = NoisedDiffusionClassifier(pair, 0.3, seed=0)
    assert max(classifier.levels.sigmas) > 2.0 and classifier(images).isfinite().all()


def test_levels_are_what_the_class_conditional_network_knows(images):
    pair = two(EDMEulerScheduler(sigma_min=1.0, sigma_max=3.0), EDM)
    classifier = NoisedDiffusionClassifier(pair, 0.1, seed=0)
    assert min(classifier.levels.sigmas) >= 1.0 and max(classifier.levels.sigmas) <= 3.0
    assert classifier(images).isfinite().all()
    for levels in (NoiseLevels((0.9, 2.0), (1.0, 1.0)), NoiseLevels((2.0, 3.1), (1.0, 1.0))):
        with pytest.raises(ValueError, match="`levels` must be above 0.2 .*within the 1 to 3 "):
            NoisedDiffusionClassifier(pair, 0.1, levels=levels)
    for sigma in (1.5, 2.0):  # the unconditional network knows this noise, and no level is above it
        with pytest.raises(ValueError, match="`sigma` must be below 1.5 .*class-conditional.*got"):
            NoisedDiffusionClassifier(pair, sigma)
        with pytest.raises(ValueError, match="`sigma` must be below 1.5"):
            default_levels(sigma, pair)
    assert DenoisedClassifier(pair, tiny_vit(), processor(), 2.0)(images).shape == (4, 3)


TABLE = DDPMScheduler(50, beta_end=0.2)


def test_a_table_of_the_unconditional_network_binds_the_noise_of_the_image_alone(images):
    pair = two(EDM, TABLE, other_table=50)
    tau = pair.nearest_unconditional_sigma(0.5)
    assert tau in pair.unconditional_parametrisation.step_sigmas.tolist() and pair.nearest_sigma(0.51) == 0.51
    for method in ("apndc", "apndc-clean"):
        classifier = NoisedDiffusionClassifier(pair, tau / 2, method, LEVELS, seed=0)
        assert classifier.levels == LEVELS and classifier(images).isfinite().all()
        with pytest.raises(ValueError, match=f"`sigma` .*such as {tau / 2:.6g}.*unconditional"):
            NoisedDiffusionClassifier(pair, 1.02 * tau / 2, method, LEVELS)
    assert NoisedDiffusionClassifier(pair, 1.02 * tau / 2, "epndc", LEVELS, seed=0)(images).isfinite().all()
    with pytest.raises(ValueError, match="`sigma` .*learned time embedding"):
        pair(images, 1.02 * tau)
    assert pair(images, 1.02 * tau, LABELS).isfinite().all()


def test_a_table_of_the_class_conditional_network_binds_the_levels_alone(images):
    pair = two(TABLE, EDM, table=50)
    steps = pair.parametrisation.step_sigmas.tolist()
    classifier = NoisedDiffusionClassifier(pair, 0.123, "apndc", LEVELS, seed=0)
    assert classifier.levels != LEVELS and set(classifier.levels.sigmas) <= set(steps)
    assert classifier(images).isfinite().all() and pair(images, 0.246).isfinite().all()
    with pytest.raises(ValueError, match="`sigma` .*learned time embedding"):
        pair(images, 0.246, LABELS)


def test_networks_under_one_scheduler_share_its_whole_steps():
    pair = two(TABLE, None, other_table=50)
    assert pair.nearest_sigma(0.5) == pair.nearest_unconditional_sigma(0.5) != 0.5


def test_features_of_clean_images_are_read_at_noise_that_the_unconditional_network_knows():
    images = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = np.arange(12) % 3
    low = NoisedDiffusionClassifier(two(EDM, EDMEulerScheduler(sigma_min=0.7)), levels=LEVELS)
    assert fit_sift(low, images, labels, SiftFitting(num_copies=1)).sift.noise == 0.7
    pair = two(EDM, TABLE, other_table=50)
    table = NoisedDiffusionClassifier(pair, levels=LEVELS)
    noise = fit_sift(table, images, labels, SiftFitting(num_copies=1)).sift.noise
    assert noise in pair.unconditional_parametrisation.step_sigmas.tolist()
    noisy = NoisedDiffusionClassifier(low.denoiser, 0.25, "epndc", LEVELS)
    with pytest.raises(ValueError, match="`sigma` must be from 0.35 "):
        fit_sift(noisy, images, labels, SiftFitting(num_copies=1))


@pytest.mark.parametrize(
    "scheduler",
    [
        DDPMScheduler(),
        DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        DDPMScheduler(prediction_type="v_prediction"),
        DDPMScheduler(50, trained_betas=np.linspace(1e-4, 0.2, 50)),
        DDPMScheduler(50, trained_betas=np.linspace(1e-4, 0.3, 50)),
        EDMEulerScheduler(sigma_data=0.4),
        VPPrecondScheduler(),
        FlowMatchEulerDiscreteScheduler(),
        CMStochasticIterativeScheduler(),
    ],
)
def test_settings_state_the_other_scheduler(scheduler, unet):
    """With what its network was trained with, not how one would sample, and only where that network is asked."""
    pair = two(EDMEulerScheduler(), scheduler)
    settings = NoisedDiffusionClassifier(pair, 0.25).settings
    assert settings["null_source"] == "unconditional_unet"
    stated = settings["unconditional_scheduler"]
    assert stated["scheduler"] == type(scheduler).__name__
    assert stated == DenoisedClassifier(pair, tiny_vit(), processor(), 0.25).settings["unconditional_scheduler"]
    different = two(EDMEulerScheduler(), DDPMScheduler(beta_end=0.03)).unconditional_settings
    assert stated != different["unconditional_scheduler"]
    assert "unconditional_scheduler" not in NoisedDiffusionClassifier(pair, 0.25, "epndc").settings
    same = two(EDMEulerScheduler(), None)
    assert "unconditional_scheduler" not in NoisedDiffusionClassifier(same, 0.25).settings


def test_settings_do_not_state_how_one_would_sample():
    stated = [
        two(EDMEulerScheduler(), DDPMScheduler(**settings)).unconditional_settings
        for settings in ({}, {"timestep_spacing": "trailing", "clip_sample": False, "variance_type": "learned_range"})
    ]
    assert stated[0] == stated[1]


@pytest.mark.parametrize(
    "unconditional, scheduler, match",
    [
        (None, DDIMScheduler(), "`unconditional_scheduler` must be None without .*got DDIMScheduler"),
        ({}, ScoreSdeVeScheduler(), "`unconditional_scheduler` must have a known noise level.*got ScoreSdeVe"),
        ({}, FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "`unconditional_scheduler` must have invert_sigmas"),
        ({}, DDPMScheduler(timestep_spacing="linspace", prediction_type="x"), "`unconditional_scheduler` .*'x'"),
        (
            {"time_embedding_type": "learned", "num_train_timesteps": 50},
            DDPMScheduler(1000),
            "`unconditional_scheduler` must have 50 whole timesteps.*got DDPMScheduler with 1000",
        ),
        ({"sample_size": 16}, DDPMScheduler(), "`unconditional_unet` must take images.*sample_size=.8, 8.*16"),
        (
            {"in_channels": 3, "out_channels": 3},
            DDPMScheduler(),
            "`unconditional_unet` .*in_channels=1.*=3",
        ),
    ],
)
def test_refuses_pairs(unconditional, scheduler, match, unet):
    second = None if unconditional is None else tiny_unet(None, **unconditional)
    with pytest.raises(ValueError, match=match):
        Denoiser(unet, EDM, unconditional_unet=second, unconditional_scheduler=scheduler)


def test_a_network_of_any_size_stands_beside_one_of_a_size(unet, images):
    pair = Denoiser(unet, EDM, unconditional_unet=tiny_unet(None, sample_size=None), null_class=3)
    assert pair(images, 0.5).shape == images.shape
    with pytest.raises(ValueError, match="`unconditional_scheduler` must be None"):
        Denoiser(tiny_unet(None), EDM, num_classes=0, unconditional_scheduler=EDM)

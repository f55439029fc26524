"""Each scheduler family against its own `step`, and all of them against one closed form."""

import dataclasses
import math

import diffusers
import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDPMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from helpers.networks import processor, tiny_unet, tiny_vit

from diffusers_ndc import DenoisedClassifier, Denoiser, NoisedDiffusionClassifier, NoiseLevels
from diffusers_ndc.diffusion.parametrisation import parametrisation


LABELS = torch.tensor([0, 1, 2, 0])
MEAN, SPREAD = 0.3, 0.6
"""A Gaussian prior of independent pixels."""


@pytest.fixture
def eps(images):
    return torch.randn(images.shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("step", [0, 13, 38])
def test_consistency_models_as_their_scheduler_steps(step, unet, images, eps):
    """One-step sampling from a trained noise level ends in the scheduler's denoised image."""
    scheduler = CMStochasticIterativeScheduler(clip_denoised=False)
    denoiser = Denoiser(unet, scheduler, null_class=3)
    scheduler.set_timesteps(timesteps=[step])
    t, sigma = scheduler.timesteps[0], scheduler.sigmas[0]
    x_sigma = 2 * images - 1 + sigma * eps
    output = unet(scheduler.scale_model_input(x_sigma, t), t.float(), class_labels=LABELS).sample
    expected = scheduler.step(output, t, x_sigma).prev_sample
    torch.testing.assert_close(denoiser(x_sigma, sigma.item(), LABELS), expected, rtol=1e-4, atol=1e-4)
    assert denoiser.sigma_range == (0.002, 80.0)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("s", [0.1, 0.5, 0.95])
def test_flow_matching_as_its_scheduler_steps(shift, s, unet, images, eps):
    """An Euler step from time s to 0 ends in the image that the velocity points at."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    denoiser = Denoiser(unet, scheduler, null_class=3)
    scheduler.set_timesteps(sigmas=[s])
    t, s = scheduler.timesteps[0], scheduler.sigmas[0]
    x_s = scheduler.scale_noise(2 * images - 1, t[None], eps)
    expected = scheduler.step(unet(x_s, t, class_labels=LABELS).sample, t, x_s).prev_sample
    sigma = (s / (1 - s)).item()
    h = denoiser(2 * images - 1 + sigma * eps, sigma, LABELS)
    torch.testing.assert_close(h, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shift, dynamic", [(1.0, False), (3.0, False), (3.0, True)])
def test_range_of_flow_matching_is_that_of_its_finite_steps(shift, dynamic):
    """The last of the N steps is pure noise. A dynamic shift is none of the training's."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift, use_dynamic_shifting=dynamic)
    sigmas = (scheduler.sigmas / (1 - scheduler.sigmas))[1:]
    found = parametrisation(scheduler)
    assert found.sigma_max == pytest.approx(sigmas[0].item(), rel=1e-3)
    assert found.sigma_min == pytest.approx(sigmas[-1].item(), rel=1e-3)
    scheduler.set_timesteps(5, **({"mu": 1.0} if dynamic else {}))
    assert parametrisation(scheduler).sigma_max == found.sigma_max, "of training, not of the last sampling"


class GaussianMean(torch.nn.Module):
    """The exact network for the Gaussian prior: its posterior mean, in the form in which a family has it output."""

    def __init__(self, output_of):
        super().__init__()
        self.output_of = output_of
        self.class_embedding, self.weight = (
            torch.nn.Embedding(4, 1),
            torch.nn.Parameter(torch.zeros((), dtype=torch.float64)),
        )
        self.config = tiny_unet().config

    def forward(self, sample, timestep, class_labels, return_dict):
        return (self.output_of(sample, timestep.double().view(-1, 1, 1, 1)),)


def posterior_mean(x_sigma, sigma):
    return MEAN + SPREAD**2 / (SPREAD**2 + sigma**2) * (x_sigma - MEAN)


def vp_output(prediction_type):
    scheduler = DDPMScheduler(prediction_type=prediction_type)

    def output(x_t, t):
        a = scheduler.alphas_cumprod.double()[t.round().long()]
        x = posterior_mean(x_t / a.sqrt(), ((1 - a) / a).sqrt())
        eps = (x_t - a.sqrt() * x) / (1 - a).sqrt()
        return {"epsilon": eps, "v_prediction": a.sqrt() * eps - (1 - a).sqrt() * x, "sample": x}[prediction_type]

    return scheduler, output


def edm_output(c_in, t):
    sigma = torch.exp(4 * t)
    x_sigma = c_in * (sigma**2 + 0.25).sqrt()
    c_skip, c_out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25).sqrt()
    return (posterior_mean(x_sigma, sigma) - c_skip * x_sigma) / c_out


def consistency_output(c_in, t):
    """Song et al. 2023, Appendix C."""
    sigma = torch.exp(t / 250)
    x_sigma = c_in * (sigma**2 + 0.25).sqrt()
    c_skip = 0.25 / ((sigma - 0.002) ** 2 + 0.25)
    c_out = 0.5 * (sigma - 0.002) / (sigma**2 + 0.25).sqrt()
    return (posterior_mean(x_sigma, sigma) - c_skip * x_sigma) / c_out


def flow_output(x_s, t):
    """E[eps - x given x_s], from the joint Gaussian of eps, x and x_s."""
    s = t / 1000
    residual = (x_s - (1 - s) * MEAN) / ((1 - s) ** 2 * SPREAD**2 + s**2)
    return s * residual - (MEAN + (1 - s) * SPREAD**2 * residual)


@pytest.mark.parametrize(
    "scheduler, output_of",
    [
        vp_output("epsilon"),
        vp_output("v_prediction"),
        vp_output("sample"),
        (EDMEulerScheduler(), edm_output),
        (CMStochasticIterativeScheduler(), consistency_output),
        (FlowMatchEulerDiscreteScheduler(), flow_output),
        (FlowMatchEulerDiscreteScheduler(shift=3.0), flow_output),
    ],
)
def test_all_families_give_the_posterior_mean_of_a_gaussian(scheduler, output_of, images, eps):
    """So two parametrisations of one denoiser give one h."""
    a = DDPMScheduler().alphas_cumprod.double()[torch.tensor([5, 100, 500, 900])]
    sigma = ((1 - a) / a).sqrt()
    x_sigma = 2 * images.double() - 1 + sigma.view(-1, 1, 1, 1) * eps
    h = Denoiser(GaussianMean(output_of), scheduler, null_class=3)(x_sigma, sigma, LABELS)
    torch.testing.assert_close(h, posterior_mean(x_sigma, sigma.view(-1, 1, 1, 1)), rtol=1e-3, atol=1e-3)


ZERO_SNR = [
    "DDPMScheduler",
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "LCMScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
]


@pytest.mark.parametrize("name", ZERO_SNR)
def test_zero_terminal_snr_leaves_the_last_step_out(name):
    """Some schedulers write 0 for it and some 2^-24; neither is noise with an image in it, and no time leads there."""
    settings = {"beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "v_prediction", "beta_schedule": "linear"}
    scheduler = getattr(diffusers, name)(rescale_betas_zero_snr=True, timestep_spacing="trailing", **settings)
    a = DDPMScheduler(rescale_betas_zero_snr=True, **settings).alphas_cumprod
    found = parametrisation(scheduler)
    assert a[-1] == 0 and found.sigma_max == pytest.approx(((1 - a[-2]) / a[-2]).sqrt().item(), rel=1e-3)
    assert found.network_time(torch.tensor([found.sigma_max, 1e6])).tolist() == pytest.approx([998, 998])
    assert torch.all(found.log_sigmas.diff() > 0)


def test_a_learned_variance_is_left_aside(images, eps):
    """DDPM's own step splits the output in the same way."""
    unet = tiny_unet(out_channels=2)
    scheduler = DDPMScheduler(variance_type="learned_range", clip_sample=False)
    a = scheduler.alphas_cumprod[300]
    sigma = ((1 - a) / a).sqrt()
    x_t = a.sqrt() * (2 * images - 1 + sigma * eps)
    expected = scheduler.step(unet(x_t, 300, class_labels=LABELS).sample, 300, x_t).pred_original_sample
    h = Denoiser(unet, scheduler)(x_t / a.sqrt(), sigma, LABELS)
    torch.testing.assert_close(h, expected, rtol=1e-3, atol=1e-3)


@pytest.fixture
def learned():
    """A denoiser with a table of 50 timesteps."""
    unet = tiny_unet(time_embedding_type="learned", num_train_timesteps=50)
    return Denoiser(unet, DDPMScheduler(50, beta_end=0.2, clip_sample=False), null_class=3)


def test_a_learned_time_embedding_is_told_the_nearest_step(learned, images, eps):
    for t in (0, 17, 49):
        sigma = learned.parametrisation.step_sigmas[t].item()
        assert learned.nearest_sigma(1.01 * sigma) == learned.nearest_sigma(0.99 * sigma) == sigma
        assert learned.parametrisation.network_time(sigma * torch.tensor([0.99, 1.0, 1.01])).tolist() == [t] * 3
        a = learned.scheduler.alphas_cumprod[t]
        x_t = a.sqrt() * (2 * images - 1 + sigma * eps)
        expected = learned.scheduler.step(learned.unet(x_t, t, class_labels=LABELS).sample, t, x_t)
        h = learned(x_t / a.sqrt(), sigma, LABELS)
        torch.testing.assert_close(h, expected.pred_original_sample, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="`sigma` must be .*learned time embedding.*such as .*got 14.8"):
        learned(images, 1.01 * sigma, LABELS)


def test_levels_of_a_learned_time_embedding_are_those_of_its_steps(learned, images, monkeypatch):
    """What is recorded, what is added to the image, and what the network is told are one noise."""
    classifier = NoisedDiffusionClassifier(learned, levels=NoiseLevels.log_grid(0.5, 9.0, 4), seed=0)
    steps = learned.parametrisation.step_sigmas.tolist()
    assert all(sigma in steps for sigma in classifier.levels.sigmas)
    assert set(classifier.settings["levels"]["sigmas"]) <= set(steps)
    drawn, told, pair, run = [], [], classifier.likelihood.pair, learned.unet.forward

    def watched_pair(x_tau, x0_hat, tau, sigma, eps):
        drawn.extend(sigma.flatten().tolist())
        return pair(x_tau, x0_hat, tau, sigma, eps)

    def watched_forward(sample, time, **others):
        told.extend(time.tolist())
        return run(sample, time, **others)

    classifier.likelihood = dataclasses.replace(classifier.likelihood, pair=watched_pair)
    monkeypatch.setattr(learned.unet, "forward", watched_forward)
    classifier(images)
    assert sorted(set(drawn)) == pytest.approx([steps[time] for time in sorted(set(told))])


def test_a_learned_time_embedding_denoises_the_noise_of_its_steps_only(learned, images):
    """epndc never tells the network of the image's own noise, and takes any; what denoises it first does not."""
    step = learned.nearest_sigma(0.5) / 2
    between = 1.02 * step
    for method in ("apndc", "apndc-clean"):
        assert NoisedDiffusionClassifier(learned, step, method, seed=0)(images).shape == (4, 3)
        with pytest.raises(ValueError, match=f"`sigma` .*such as {step:.6g}"):
            NoisedDiffusionClassifier(learned, between, method)
    assert NoisedDiffusionClassifier(learned, between, "epndc", seed=0)(images).isfinite().all()
    assert DenoisedClassifier(learned, tiny_vit(), processor(), step)(images).shape == (4, 3)
    with pytest.raises(ValueError, match="`sigma` .*such as"):
        DenoisedClassifier(learned, tiny_vit(), processor(), between)


@pytest.mark.parametrize("scheduler", [DDPMScheduler(1000), EDMEulerScheduler(), FlowMatchEulerDiscreteScheduler(50)])
def test_refuses_a_table_of_timesteps_that_is_not_the_scheduler_s(scheduler):
    unet = tiny_unet(time_embedding_type="learned", num_train_timesteps=50)
    with pytest.raises(ValueError, match="`scheduler` must have 50 .*num_train_timesteps=50, got"):
        Denoiser(unet, scheduler)
    unconditional = tiny_unet(num_class_embeds=None, time_embedding_type="learned", num_train_timesteps=50)
    with pytest.raises(ValueError, match="`scheduler` must have 50 .*num_train_timesteps=50, got"):
        Denoiser(tiny_unet(), scheduler, unconditional_unet=unconditional)


def test_default_levels_stay_in_the_range_of_every_family(unet):
    for scheduler in (CMStochasticIterativeScheduler(), FlowMatchEulerDiscreteScheduler(shift=3.0)):
        denoiser = Denoiser(unet, scheduler, null_class=3)
        low, high = denoiser.sigma_range
        assert 0 < low < high < math.inf
        levels = NoisedDiffusionClassifier(denoiser, 0.25).levels.sigmas
        assert low <= min(levels) and max(levels) <= high

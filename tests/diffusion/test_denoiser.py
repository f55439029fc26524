import math

import diffusers
import pytest
import torch
from diffusers import (
    DDPMScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    ScoreSdeVeScheduler,
)
from helpers.networks import tiny_unet

from diffusers_ndc import Denoiser


SIGMAS = torch.tensor([0.05, 0.5, 1.7, 20.0])
LABELS = torch.tensor([0, 1, 2, 0])

VP_SCHEDULERS = [
    "DDPMScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDIMParallelScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
]


@pytest.fixture
def x_sigma(images):
    generator = torch.Generator().manual_seed(2)
    return 2 * images - 1 + SIGMAS.view(-1, 1, 1, 1) * torch.randn(images.shape, generator=generator)


@pytest.mark.parametrize("name", VP_SCHEDULERS)
def test_every_vp_scheduler_gives_the_same_denoiser(name, unet, x_sigma):
    """One training table, one network: whichever scheduler the folder names, h is the same."""
    scheduler = getattr(diffusers, name)(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    denoiser, reference = Denoiser(unet, scheduler), Denoiser(unet, DDPMScheduler())
    torch.testing.assert_close(
        denoiser(x_sigma, SIGMAS, LABELS), reference(x_sigma, SIGMAS, LABELS), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_vp_agrees_with_the_scheduler_s_own_prediction(prediction_type, unet, x_sigma):
    """At a whole timestep, h is `pred_original_sample` of diffusers for the same network output."""
    scheduler = DDPMScheduler(prediction_type=prediction_type, clip_sample=False)
    for t in (0, 3, 250, 999):
        a = scheduler.alphas_cumprod[t]
        sigma = ((1 - a) / a).sqrt()
        x_t = a.sqrt() * x_sigma
        output = unet(x_t, t, class_labels=LABELS).sample
        expected = scheduler.step(output, t, x_t).pred_original_sample
        h = Denoiser(unet, scheduler)(x_sigma, sigma, LABELS)
        torch.testing.assert_close(h, expected, rtol=1e-3, atol=1e-4 * max(1, sigma.item()))


def test_continuous_sigma_interpolates_the_timestep_as_euler_does(unet):
    scheduler = EulerDiscreteScheduler()
    log_sigmas = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt().log().numpy()
    time = Denoiser(unet, scheduler).parametrisation.network_time
    for sigma in (0.011, 0.3, 1.234, 9.9, 150.0):
        expected = scheduler._sigma_to_t(torch.tensor(sigma).numpy(), log_sigmas)
        assert time(torch.tensor([sigma])).item() == pytest.approx(float(expected), abs=1e-2)


@pytest.mark.parametrize("edm", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler])
def test_vp_and_edm_schedulers_agree_on_one_network(edm, unet, x_sigma):
    """With sigma_data = 1 EDM's preconditioning of a v-prediction is the VP one; only the name of the time differs.

    So the network's time embedding is cut out here, and h must be the same to 1e-4.
    """
    with torch.no_grad():
        unet.time_embedding.linear_2.weight.zero_()
    vp = Denoiser(unet, DDPMScheduler(prediction_type="v_prediction"))
    ve = Denoiser(unet, edm(sigma_data=1.0, prediction_type="v_prediction"))
    torch.testing.assert_close(vp(x_sigma, SIGMAS, LABELS), ve(x_sigma, SIGMAS, LABELS), rtol=1e-4, atol=1e-4)


def test_edm_preconditioning_is_that_of_the_paper(unet, x_sigma):
    """Karras et al. 2022, Table 1, written out."""
    denoiser = Denoiser(unet, EDMEulerScheduler(sigma_data=0.5))
    s = SIGMAS.view(-1, 1, 1, 1)
    output = unet(x_sigma / (s**2 + 0.25).sqrt(), SIGMAS.log() / 4, class_labels=LABELS).sample
    expected = 0.25 / (s**2 + 0.25) * x_sigma + s * 0.5 / (s**2 + 0.25).sqrt() * output
    torch.testing.assert_close(denoiser(x_sigma, SIGMAS, LABELS), expected, rtol=1e-5, atol=1e-5)


def test_network_runs_in_its_dtype_and_h_stays_float32(unet, x_sigma):
    reference = Denoiser(unet, EDMEulerScheduler())(x_sigma, SIGMAS, LABELS)
    h = Denoiser(unet.to(torch.bfloat16), EDMEulerScheduler())(x_sigma, SIGMAS, LABELS)
    assert h.dtype == torch.float32 and next(unet.parameters()).dtype == torch.bfloat16
    torch.testing.assert_close(h, reference, rtol=0.1, atol=0.1)


def test_null_class_unconditional_network_and_class_mean(unet, x_sigma):
    scheduler = DDPMScheduler()
    by_class = torch.stack([Denoiser(unet, scheduler)(x_sigma, SIGMAS, torch.full((4,), y)) for y in range(4)])

    null_class = Denoiser(unet, scheduler, null_class=3)
    assert (null_class.null_source, null_class.num_classes, null_class.null_evaluations) == ("null_class", 3, 1)
    torch.testing.assert_close(null_class(x_sigma, SIGMAS), by_class[3])

    class_mean = Denoiser(unet, scheduler)
    assert (class_mean.null_source, class_mean.num_classes, class_mean.null_evaluations) == ("class_mean", 4, 4)
    torch.testing.assert_close(class_mean(x_sigma, SIGMAS), by_class.mean(0))

    second = tiny_unet(num_class_embeds=None)
    unconditional = Denoiser(unet, scheduler, null_class=3, unconditional_unet=second)
    assert (unconditional.null_source, unconditional.null_evaluations) == ("unconditional_unet", 1)
    a = 1 / (1 + SIGMAS**2).view(-1, 1, 1, 1)
    output = second(a.sqrt() * x_sigma, unconditional.parametrisation.network_time(SIGMAS)).sample
    torch.testing.assert_close(unconditional(x_sigma, SIGMAS), x_sigma - SIGMAS.view(-1, 1, 1, 1) * output)


def test_gradients_pass_through_the_mean_over_the_classes(unet, x_sigma):
    """Also where the network's weights require gradients, as they do unless somebody froze them."""
    x_sigma.requires_grad_()
    Denoiser(unet, DDPMScheduler())(x_sigma, SIGMAS).square().sum().backward()
    assert x_sigma.grad.isfinite().all() and unet.class_embedding.weight.grad.abs().max() > 0


def test_zero_terminal_snr_schedule_keeps_its_finite_levels(unet):
    scheduler = DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    low, high = Denoiser(unet, scheduler).sigma_range
    assert 0 < low < high < float("inf")


def test_timestep_class_embedding_takes_its_number_of_classes_from_the_user(x_sigma):
    unet = tiny_unet(num_class_embeds=None, class_embed_type="timestep")
    assert Denoiser(unet, DDPMScheduler(), num_classes=3)(x_sigma, SIGMAS, LABELS).isfinite().all()
    with pytest.raises(ValueError, match="num_classes"):
        Denoiser(unet, DDPMScheduler())


@pytest.mark.parametrize(
    "unet_settings, arguments, match",
    [
        ({"num_class_embeds": None}, {}, "no class embedding"),
        ({"num_class_embeds": None, "class_embed_type": "identity"}, {}, "no class embedding"),
        ({"out_channels": 3}, {}, "`unet` must .*twice as many.*got .*out_channels=3"),
        ({}, {"null_class": 0}, "`null_class` must be .*the last of the 4 .*got 0"),
        ({}, {"num_classes": 3}, "`num_classes` .*4 classes.*got 3"),
        ({}, {"num_classes": 4, "null_class": 3}, "`num_classes` .*3 classes.*got 4"),
        ({}, {"unconditional_unet": tiny_unet()}, "`unconditional_unet` must be a network without classes"),
    ],
)
def test_refuses_networks(unet_settings, arguments, match):
    with pytest.raises(ValueError, match=match):
        Denoiser(tiny_unet(**unet_settings), DDPMScheduler(), **arguments)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["unet", "unconditional_unet"])
def test_refuses_weights_that_are_not_finite(name, value):
    networks = {"unet": tiny_unet(), "unconditional_unet": tiny_unet(num_class_embeds=None)}
    with torch.no_grad():
        networks[name].conv_out.weight[0, 0, 0, 0] = value
    with pytest.raises(ValueError, match=f"`{name}` must have finite weights"):
        Denoiser(scheduler=DDPMScheduler(), **networks)


@pytest.mark.parametrize("labels", [[0, 1, 2, 4], [-1, 0, 0, 0], [0, 1]])
def test_refuses_labels_that_the_network_does_not_have(unet, x_sigma, labels):
    with pytest.raises(ValueError, match="`class_labels`"):
        Denoiser(unet, DDPMScheduler(), null_class=3)(x_sigma, SIGMAS, torch.tensor(labels))


@pytest.mark.parametrize(
    "scheduler, match",
    [
        (ScoreSdeVeScheduler(), "`scheduler` must have a known noise level.*got ScoreSdeVeScheduler"),
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas"),
        (diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction"), "flow_prediction"),
        (diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True), "use_flow_sigmas"),
        (EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"), "timestep_type"),
    ],
)
def test_refuses_schedulers(unet, scheduler, match):
    with pytest.raises(ValueError, match=match):
        Denoiser(unet, scheduler)

"""Networks of Karras et al. against numbers of their authors' program, and the classifiers of Chen et al. on them."""

import math

import pytest
import torch
from diffusers import UNet2DModel
from helpers.edm_files import golden, load_fixture, published_shapes

from diffusers_ndc import Denoiser, EDMUNet2DModel, NoisedDiffusionClassifier, NoiseLevels
from diffusers_ndc.checkpoints import (
    EDMCheckpoint,
    IDDPMPrecondScheduler,
    VEPrecondScheduler,
    VPPrecondScheduler,
    convert_network,
    convert_scheduler,
)
from diffusers_ndc.checkpoints.edm_unet import FourierTimesteps
from diffusers_ndc.common.seeds import derive_seeds


@pytest.mark.parametrize("name, network", [("a", EDMUNet2DModel), ("b", EDMUNet2DModel), ("c2", UNet2DModel)])
@torch.no_grad()
def test_conditional_networks_are_the_published_ones(name, network):
    checkpoint, numbers = golden(name)
    unet = convert_network(checkpoint, no_label_row=True)
    denoiser = Denoiser(unet, convert_scheduler(checkpoint), null_class=10)
    assert type(unet) is network and denoiser.sigma_range == (0.002, 80.0)
    x, sigma = numbers["in.x"], numbers["in.sigma"]
    labels = numbers["in.labels"].argmax(dim=1)
    torch.testing.assert_close(denoiser(x, sigma, labels), numbers["out.D"], rtol=0, atol=1e-4)
    torch.testing.assert_close(denoiser(x, sigma), numbers["out.D_uncond"], rtol=0, atol=1e-4)
    assert (numbers["out.D"] - numbers["out.D_uncond"]).abs().max() > 0.05


@pytest.mark.parametrize(
    "name, tolerance, levels", [("d", 1e-3, (0.0009765625, 152.16697692871094)), ("e", 1e-4, (0.002, 80.0))]
)
@torch.no_grad()
def test_unconditional_networks_are_the_published_ones(name, tolerance, levels):
    checkpoint, numbers = golden(name)
    classes = convert_network(golden("a")[0])
    denoiser = Denoiser(classes, convert_scheduler(checkpoint), unconditional_unet=convert_network(checkpoint))
    assert denoiser.null_source == "unconditional_unet" and denoiser.sigma_range == levels
    torch.testing.assert_close(
        denoiser(numbers["in.x"], numbers["in.sigma"]), numbers["out.D"], rtol=0, atol=tolerance
    )
    torch.testing.assert_close(numbers["out.D"], numbers["out.D_uncond"])


@pytest.fixture(scope="module")
def reference():
    """The denoiser of the networks `a` and `e`, and what the authors' classifiers made of it."""
    conditional, unconditional = golden("a")[0], golden("e")[0]
    denoiser = Denoiser(
        convert_network(conditional),
        convert_scheduler(conditional),
        unconditional_unet=convert_network(unconditional),
    )
    return denoiser, load_fixture("edm_classifiers")[1]


@pytest.mark.parametrize("sigma, points", [(0.25, 17), (0.5, 17), (0.5, 33)])
@pytest.mark.parametrize("name, method", [("epndc", "epndc"), ("apndc_ensemble", "apndc-clean")])
@torch.no_grad()
def test_classifiers_are_the_authors_own(name, method, sigma, points, reference, monkeypatch):
    """Their errors at every level and their losses, on their noise; `reference_grid` has their weights.

    Their errors are means over pixels, and EPNDC's are of posterior means, `(s'^2 - s^2) / s'^2` times ours.
    """
    denoiser, numbers = reference
    run, pixels = f"{name}.s{sigma}_n{points}.", 3 * 16 * 16
    levels = NoiseLevels.reference_grid(2 * sigma, points, method=method)
    noise = {
        seed: numbers["noise"][image, level]
        for image in range(2)
        for level, seed in enumerate(derive_seeds((image,), len(levels)))
    }
    score = NoisedDiffusionClassifier.squared_errors_of

    def score_with_their_noise(self, copies, triples, _=None):
        return score(self, copies, triples, lambda shape, seeds, *_: torch.stack([noise[seed] for seed in seeds]))

    monkeypatch.setattr(NoisedDiffusionClassifier, "squared_errors_of", score_with_their_noise)
    ndc = NoisedDiffusionClassifier(denoiser, sigma, method, levels)
    errors = ndc.squared_errors(numbers[f"x.s{sigma}"], seeds=[0, 1]).transpose(1, 2) / pixels
    if method == "epndc":
        s_next = torch.tensor(levels.sigmas, dtype=torch.float64)
        s = s_next - (3 - 2 * sigma) / (points - 1)
        errors = (errors * ((s_next**2 - s**2) / s_next**2) ** 2).float()
    torch.testing.assert_close(errors, numbers[run + "mse"], rtol=1e-4, atol=0)
    losses = (errors * numbers[run + "weights"]).sum(dim=2)
    torch.testing.assert_close(losses, numbers[run + "losses"], rtol=1e-4, atol=0)
    logits = ndc(numbers[f"x.s{sigma}"][:1], seeds=[0])
    torch.testing.assert_close(-logits / pixels, numbers[run + "losses"][:1], rtol=1e-4, atol=0)


SONG = {"img_channels": 3, "model_type": "SongUNet", "augment_dim": 9}
CIFAR = {**SONG, "img_resolution": 32, "channel_mult": [2, 2, 2], "dropout": 0.13}
FFHQ = {**SONG, "img_resolution": 64, "channel_mult": [1, 2, 2, 2], "dropout": 0.05, "label_dim": 0}
NCSNPP = {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
IMAGENET = {"img_resolution": 64, "img_channels": 3, "label_dim": 1000, "model_type": "DhariwalUNet", "use_fp16": True}


@pytest.mark.parametrize(
    "init_kwargs, tensors, parameters",
    [
        ({**CIFAR, "label_dim": 10}, 427, 55_735_299),
        ({**CIFAR, **NCSNPP, "label_dim": 10}, 434, 56_400_643),
        ({**CIFAR, "label_dim": 0}, 425, 55_733_891),
        ({**CIFAR, **NCSNPP, "label_dim": 0}, 432, 56_397_827),
        (FFHQ, 553, 61_805_571),
        ({**FFHQ, **NCSNPP}, 563, 62_761_091),
        (IMAGENET, 553, 295_899_267),
    ],
)
def test_published_sizes(init_kwargs, tensors, parameters):
    """Every tensor of the published networks has its place at full size, and none is left without."""
    shapes = published_shapes("EDMPrecond", init_kwargs)
    filters = {4: torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8, 2: torch.ones(2) / 2}
    published = {
        name: filters[shape[-1]].outer(filters[shape[-1]])[None, None]
        if name.endswith("resample_filter")
        else torch.empty(shape, device="meta")
        for name, shape in shapes.items()
    }
    buffers = ("resample_filter", "freqs")
    assert len(published) == tensors
    assert sum(math.prod(s) for name, s in shapes.items() if not name.endswith(buffers)) == parameters

    unet = convert_network(EDMCheckpoint("EDMPrecond", init_kwargs, published, "published"))
    classes = init_kwargs["label_dim"]
    augmentation = math.prod(shapes.get("model.map_augment.weight", (0,)))
    # of DDPM++ and NCSN++ the bias of the labels is in each row of the embedding instead
    bias = math.prod(shapes.get("model.map_label.bias", (0,)))
    assert sum(weight.numel() for weight in unet.parameters()) == parameters - augmentation - bias
    assert unet.config.sample_size == init_kwargs["img_resolution"] and unet.config.in_channels == 3
    assert unet.config.num_class_embeds == (classes or None)
    if init_kwargs["model_type"] == "DhariwalUNet":
        assert unet.config.block_out_channels == (192, 384, 576, 768) and unet.config.layers_per_block == 3
    else:
        assert unet.config.block_out_channels[-1] == 256 and unet.config.attention_resolutions == (16,)
        assert unet.config.residual_encoder == ("encoder_type" in init_kwargs)


def test_other_preconditionings_are_those_of_the_paper():
    """D of Karras et al. 2022, Table 1, written out in float64."""
    sigma = torch.tensor([0.05, 0.7, 30.0], dtype=torch.float64)
    x, f = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    vp, ve = VPPrecondScheduler(), VEPrecondScheduler()
    t = vp.precondition_noise(sigma) / 999
    torch.testing.assert_close((19.9 * t**2 / 2 + 0.1 * t).exp() - 1, sigma**2)
    torch.testing.assert_close(vp.precondition_inputs(x, sigma), x / (1 + sigma**2) ** 0.5)
    torch.testing.assert_close(vp.precondition_outputs(x, f, sigma), x - sigma * f)
    torch.testing.assert_close(ve.precondition_noise(sigma), (0.5 * sigma).log())
    torch.testing.assert_close(ve.precondition_inputs(x, sigma), x)
    torch.testing.assert_close(ve.precondition_outputs(x, f, sigma), x + sigma * f)
    assert (ve.config.sigma_min, ve.config.sigma_max) == (0.02, 100)
    converted = convert_scheduler(EDMCheckpoint("VEPrecond", {"img_resolution": 16, "img_channels": 3}, {}, "VE"))
    assert type(converted) is VEPrecondScheduler and dict(converted.config) == dict(ve.config)


def test_fourier_phases_are_rounded_in_the_published_order():
    """The network was trained with `t * (2 pi b)` in float32, where the phase reaches 10^5 at `t` = 999.

    Rounding there moves a phase by up to 0.01, so another order of the products gives another embedding.
    """
    timesteps = FourierTimesteps(256)
    timesteps.frequencies.copy_(16 * torch.randn(128, generator=torch.Generator().manual_seed(0)))
    t = torch.tensor([0.0, 0.5, 500.25, 999.0])
    b, two_pi = timesteps.frequencies.double(), torch.tensor(2 * math.pi)  # 2 pi in float32
    published = (t.double()[:, None] * (two_pi * b).float().double()).float().double()
    expected = torch.cat([published.sin(), published.cos()], dim=1)
    torch.testing.assert_close(timesteps(t).double(), expected, rtol=0, atol=1e-6)

    other = ((two_pi * t.double()).float().double()[:, None] * b).float().double()
    off = torch.cat([other.sin(), other.cos()], dim=1) - expected
    assert off[3].abs().max() > 1e-3


def test_iddpm_tells_the_network_the_nearest_trained_level():
    u = [0.0]
    for j in range(1000, 0, -1):
        ratio = math.sin(math.pi / 2 * (j - 1) / 1008) ** 2 / math.sin(math.pi / 2 * j / 1008) ** 2
        u.append(math.sqrt((u[-1] ** 2 + 1) / max(ratio, 1e-3) - 1))
    u = torch.tensor(u[::-1])
    kwargs = {"img_resolution": 16, "img_channels": 3}
    scheduler = convert_scheduler(EDMCheckpoint("iDDPMPrecond", kwargs, {"u": u}, "iDDPM"))
    assert type(scheduler) is IDDPMPrecondScheduler
    assert scheduler.config.sigma_min == pytest.approx(0.0064223, rel=1e-3)
    assert scheduler.config.sigma_max == pytest.approx(20291.17, rel=1e-4)
    between = (u[:-1] * 0.6 + u[1:] * 0.4)[1:]
    told = scheduler.precondition_noise(between)
    assert torch.equal(told, 998 - torch.arange(999.0))
    x, f = torch.randn(2, 999, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(scheduler.precondition_inputs(x, between), x / (1 + between**2) ** 0.5)
    torch.testing.assert_close(scheduler.precondition_outputs(x, f, between), x - between * f)
    with pytest.raises(ValueError, match="iDDPM must have noise levels 'u' of the shape .1001,., got .1000,"):
        convert_scheduler(EDMCheckpoint("iDDPMPrecond", kwargs, {"u": u[1:]}, "iDDPM"))


def test_iddpm_network_gives_its_mean_only():
    """Its output has twice the channels, of which those of the mean are kept."""
    adm, _ = golden("c2")
    doubled = {key: torch.cat([adm.state_dict[key]] * 2) for key in ("model.out_conv.weight", "model.out_conv.bias")}
    weights = {**adm.state_dict, **doubled, "u": torch.ones(1001)}
    unet = convert_network(EDMCheckpoint("iDDPMPrecond", adm.init_kwargs, weights, "iDDPM"))
    assert unet.config.out_channels == 3
    for name, weight in convert_network(adm).state_dict().items():
        assert torch.equal(unet.state_dict()[name], weight)

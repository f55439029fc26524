"""Networks of OpenAI against numbers of their authors' program."""

import inspect
import math

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor
from helpers.openai_files import FLAGS, NUMBERS, flags, golden, published_networks, save_golden

from diffusers_ndc import Denoiser
from diffusers_ndc.checkpoints import (
    OpenAIArguments,
    OpenAICheckpoint,
    OpenAIUNet2DModel,
    convert_openai_network,
    convert_openai_scheduler,
    read_openai_checkpoint,
)
from diffusers_ndc.checkpoints.openai_architecture import read_architecture
from diffusers_ndc.checkpoints.openai_arguments import complete


STOCK = ("a", "b", "f")


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """A function that reads a small network from a file: the network, its scheduler, inputs and outputs."""
    folder = tmp_path_factory.mktemp("openai")
    kept = {}

    def read_golden(name, **changes):
        key = (name, *changes.items())
        if key not in kept:
            path = folder / f"{name}.pt"
            if not path.exists():
                save_golden(path, name)
            checkpoint = read_openai_checkpoint(path, OpenAIArguments(**{**flags(name), **changes}))
            network, scheduler = convert_openai_network(checkpoint), convert_openai_scheduler(checkpoint)
            kept[key] = network, scheduler, golden(name)[1]
        return kept[key]

    return read_golden


def told(network, timesteps):
    """The timesteps of the process for which a network is told these."""
    return timesteps / getattr(network.config, "timestep_scale", 1.0)


@pytest.mark.parametrize("name", FLAGS)
@torch.no_grad()
def test_raw_outputs_are_the_authors_own(name, read):
    network, _, numbers = read(name)
    assert type(network) is (UNet2DModel if name in STOCK else OpenAIUNet2DModel)
    assert sum(weight.numel() for weight in network.parameters()) == NUMBERS[name]
    labels = numbers.get("in.labels")
    for x, t, raw in [("in.x", "in", "out"), ("respaced.x", "respaced", "respaced"), ("in.x", "frac", "frac")]:
        output = network(numbers[x], told(network, numbers[f"{t}.t_model"]), class_labels=labels).sample
        torch.testing.assert_close(output, numbers[f"{raw}.raw"], rtol=0, atol=2e-5)
    steps = network(numbers["in.x"], numbers["in.t"], class_labels=labels).sample
    torch.testing.assert_close(steps, numbers["out.raw"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", FLAGS)
@torch.no_grad()
def test_denoised_images_are_the_authors_own(name, read):
    """By the scheduler, and in our coordinates by `h`, for each label alone and for networks without classes."""
    network, scheduler, numbers = read(name)
    unclipped = DDPMScheduler.from_config(scheduler.config, clip_sample=False)
    labels = numbers.get("in.labels")
    denoiser = Denoiser(network, scheduler, num_classes=0 if labels is None else None)
    for x, t, out in [("in.x", "in.t", "out"), ("respaced.x", "respaced.t", "respaced")]:
        expected = numbers[f"{out}.pred_xstart"]
        raw = network(numbers[x], numbers[t], class_labels=labels).sample
        for image, step in enumerate(numbers[t].tolist()):
            one = slice(image, image + 1)
            denoised = unclipped.step(raw[one], step, numbers[x][one]).pred_original_sample
            torch.testing.assert_close(denoised, expected[one], rtol=0, atol=1e-4 * expected.abs().max().item())
        a = alphas_cumprod(scheduler)[numbers[t]].view(-1, 1, 1, 1)
        sigma = ((1 - a) / a).sqrt()
        h = denoiser(numbers[x].double() / a.sqrt(), sigma.flatten(), labels)
        errors = (h - expected).abs().amax(dim=(1, 2, 3))
        assert (errors <= 1e-4 * expected.abs().amax(dim=(1, 2, 3))).all()


def alphas_cumprod(scheduler):
    """The schedule as its authors' program computes it, in float64."""
    steps = scheduler.config.num_train_timesteps
    if scheduler.config.beta_schedule == "linear":
        betas = torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64)
    else:
        g = torch.cos((torch.arange(steps + 1).double() / steps + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - g[1:] / g[:-1]).clamp(max=0.999)
    return (1 - betas).cumprod(dim=0)


@pytest.mark.parametrize(
    "name, changes",
    [
        ("a", {"use_new_attention_order": False}),
        ("a", {"num_head_channels": 32}),
        ("b", {"use_new_attention_order": True}),
        ("b", {"num_head_channels": -1, "num_heads": 4}),
        ("c", {"rescale_timesteps": False}),
        ("c", {"num_heads": 2}),
        ("d", {"rescale_timesteps": True}),
        ("d", {"num_heads": None, "num_head_channels": 8}),
        ("e", {"num_head_channels": 32}),
        ("f", {"num_heads": 2, "use_new_attention_order": False}),
    ],
)
@torch.no_grad()
def test_wrong_arguments_give_other_outputs(name, changes, read):
    """Negative control: nothing but the numbers would tell."""
    network, _, numbers = read(name, **changes)
    output = network(numbers["in.x"], numbers["in.t"], class_labels=numbers.get("in.labels")).sample
    assert (output - numbers["out.raw"]).abs().max() > 0.3


@pytest.mark.parametrize("kind", published_networks(), ids=lambda kind: kind["files"][0])
def test_published_sizes(kind):
    """Every tensor of the published networks has its place at full size, and none is left without."""
    shapes = {name: torch.empty(shape, device="meta") for name, shape in kind["shapes"].items()}
    architecture = read_architecture(shapes, "published")
    upsampler = architecture.in_channels == 6
    values = {"predict_xstart": False, "num_classes": architecture.num_labels, **kind["arguments"]}
    given = OpenAIArguments(**values) if upsampler else OpenAIArguments()
    arguments = complete(given, architecture, "published", kind["files"][-1], {})
    for name, value in values.items():
        if name != "num_heads" or values["num_head_channels"] == -1:
            assert getattr(arguments, name) == value or (name, value) == ("num_head_channels", -1)
    network = convert_openai_network(OpenAICheckpoint(architecture, arguments, shapes, "published"))
    assert len(shapes) == kind["tensors"]
    assert sum(weight.numel() for weight in network.parameters()) == kind["parameters"]
    assert network.config.num_class_embeds == architecture.num_labels
    assert (network.config.sample_size, network.config.out_channels) == (kind["arguments"]["image_size"], 6)


@pytest.mark.parametrize(
    "file, network, more",
    [
        ("64x64_diffusion.pt", UNet2DModel, {"attention_head_dim": 64}),
        ("128x128_diffusion.pt", OpenAIUNet2DModel, {"num_attention_heads": 4, "attention_head_dim": None}),
        ("256x256_diffusion.pt", UNet2DModel, {"attention_head_dim": 64}),
        ("lsun_bedroom.pt", UNet2DModel, {"attention_head_dim": 64}),
        ("512x512_diffusion.pt", OpenAIUNet2DModel, {"time_proj_dim": 256, "attention_head_dim": 64}),
        ("imagenet64_uncond_100M_1500K.pt", OpenAIUNet2DModel, {"num_attention_heads": 4, "timestep_scale": 0.25}),
        ("cifar10_uncond_50M_500K.pt", OpenAIUNet2DModel, {"attention_head_dim": 64, "timestep_scale": 0.25}),
        ("imagenet64_cond_270M_250K.pt", OpenAIUNet2DModel, {"num_attention_heads": 4, "timestep_scale": 1.0}),
        ("lsun_uncond_100M_1200K_bs128.pt", UNet2DModel, {"attention_head_dim": 512}),
    ],
)
def test_published_networks_are_stock_wherever_that_is_exact(file, network, more):
    kind = next(kind for kind in published_networks() if file in kind["files"])
    shapes = {name: torch.empty(shape, device="meta") for name, shape in kind["shapes"].items()}
    architecture = read_architecture(shapes, file)
    arguments = complete(OpenAIArguments(), architecture, file, file, {})
    unet = convert_openai_network(OpenAICheckpoint(architecture, arguments, shapes, file))
    assert type(unet) is network
    assert {name: unet.config[name] for name in more} == more


def test_scheduler_is_that_of_the_training(read):
    for name, schedule, steps in [
        ("a", "squaredcos_cap_v2", 1000),
        ("e", "linear", 1000),
        ("c", "squaredcos_cap_v2", 4000),
    ]:
        scheduler = read(name)[1]
        assert (scheduler.config.beta_schedule, scheduler.config.num_train_timesteps) == (schedule, steps)
        assert scheduler.config.variance_type == "learned_range"
        torch.testing.assert_close(scheduler.alphas_cumprod.double(), alphas_cumprod(scheduler), rtol=0, atol=1e-6)
    assert read("a", predict_xstart=True)[1].config.prediction_type == "sample"


def test_signature_has_every_setting_of_the_stock_network():
    """diffusers drops, when it loads, a setting that the signature does not have."""
    stock, ours = inspect.signature(UNet2DModel.__init__), inspect.signature(OpenAIUNet2DModel.__init__)
    for name, parameter in stock.parameters.items():
        assert ours.parameters[name].default == parameter.default


@torch.no_grad()
def test_other_attention_processors_have_the_same_heads(read):
    """Those that compute the softmax themselves read the scale, and slices the number of heads."""
    network, _, numbers = read("d")
    arguments = (numbers["in.x"], numbers["in.t"], numbers["in.labels"])
    expected = numbers["out.raw"]
    attentions = [part for part in network.modules() if isinstance(part, Attention)]
    for processor in (AttnProcessor(), SlicedAttnProcessor(2), AttnProcessor2_0()):
        for part in attentions:
            part.set_processor(processor)
        torch.testing.assert_close(network(*arguments).sample, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"num_attention_heads": 4, "attention_head_dim": 8}, "`attention_head_dim` must be None"),
        ({"num_attention_heads": 3, "attention_head_dim": None}, "`num_attention_heads` must divide"),
        ({"time_embedding_type": "fourier", "timestep_scale": 0.25}, "`time_embedding_type` must be 'positional'"),
    ],
)
def test_refuses_settings_that_exclude_each_other(settings, match):
    blocks = {"down_block_types": ("AttnDownBlock2D",), "up_block_types": ("AttnUpBlock2D",)}
    with pytest.raises(ValueError, match=match):
        OpenAIUNet2DModel(**blocks, block_out_channels=(32,), layers_per_block=1, **settings)

"""One tiny, randomly initialised model of each family, from its folder to an answer and a certificate."""

import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)
from helpers.networks import tiny_unet

from diffusers_ndc import Denoiser, NoisedDiffusionClassifierPipeline, NoiseLevels


def tiny_condition_unet(num_class_embeds=4, **settings):
    """A real, tiny `UNet2DConditionModel` for 8 x 8 grey images, without cross-attention."""
    config = {"cross_attention_dim": 16, "attention_head_dim": 4, "mid_block_type": "UNetMidBlock2D"}
    return tiny_unet(num_class_embeds, UNet2DConditionModel, **{**config, **settings})


LEARNED = {"time_embedding_type": "learned", "num_train_timesteps": 1000}
BY_FUNCTION = {"num_class_embeds": None, "class_embed_type": "timestep"}
FAMILIES = {
    "ddpm": lambda: (tiny_unet(), DDPMScheduler()),
    "edm": lambda: (tiny_unet(), EDMEulerScheduler()),
    "consistency": lambda: (tiny_unet(), CMStochasticIterativeScheduler()),
    "flow": lambda: (tiny_unet(), FlowMatchEulerDiscreteScheduler()),
    "flow, shifted": lambda: (tiny_unet(), FlowMatchEulerDiscreteScheduler(shift=3.0)),
    "learned variance": lambda: (tiny_unet(out_channels=2), DDPMScheduler(variance_type="learned_range")),
    "learned time": lambda: (tiny_unet(**LEARNED), DDPMScheduler()),
    "zero terminal SNR": lambda: (
        tiny_unet(),
        DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction"),
    ),
    "labels by a function": lambda: (tiny_unet(**BY_FUNCTION), DDPMScheduler()),
    "condition": lambda: (tiny_condition_unet(), DDPMScheduler()),
    "condition, labels by a function": lambda: (tiny_condition_unet(**BY_FUNCTION), DDPMScheduler()),
}


@pytest.fixture(params=FAMILIES, scope="module")
def family(request, tmp_path_factory):
    """A pipeline of this family, the folder of its networks, and what names its classes."""
    unet, scheduler = FAMILIES[request.param]()
    folder = tmp_path_factory.mktemp("family")
    DDPMPipeline(unet, scheduler).save_pretrained(folder)
    arguments = {"id2label": {0: "a", 1: "b", 2: "c"}}
    if unet.config.num_class_embeds:
        arguments["null_class"] = 3
    pipe = NoisedDiffusionClassifierPipeline.from_pretrained(folder, **arguments)
    pipe.set_progress_bar_config(disable=True)
    return pipe, folder, arguments


LEVELS = NoiseLevels.log_grid(0.8, 5.0, 2)


def test_classifies_and_certifies(family, images):
    """Also where the noise must be a training step's."""
    pipe, _, _ = family
    assert isinstance(pipe.unet, (UNet2DModel, UNet2DConditionModel))
    out = pipe(images, seed=0)
    assert out.logits.shape == (4, 3) and out.logits.std(dim=1).min() > 0
    sigma = pipe.denoiser.nearest_sigma(0.5) / 2
    certificate = pipe.certify(images[0], sigma, n0=3, n=20, levels=LEVELS, seed=0)
    assert certificate.verify() and certificate.sigma == sigma


def test_saved_model_answers_as_before(family, images, tmp_path):
    pipe, folder, arguments = family
    expected = pipe(images, seed=0, levels=LEVELS).logits
    pipe.save_pretrained(tmp_path, max_shard_size="20KB", variant="fp16")
    read = NoisedDiffusionClassifierPipeline.from_pretrained(tmp_path, variant="fp16")
    assert torch.equal(read(images, seed=0, levels=LEVELS).logits, expected)
    placed = NoisedDiffusionClassifierPipeline.from_pretrained(folder, device_map="cpu", **arguments)
    assert torch.equal(placed(images, seed=0, levels=LEVELS).logits, expected)
    shared = NoisedDiffusionClassifierPipeline.from_pipe(pipe)
    assert torch.equal(shared(images, seed=0, levels=LEVELS).logits, expected)
    if isinstance(pipe.unet, UNet2DModel) and pipe.unet.config.class_embed_type == "timestep":
        with pytest.raises(ValueError, match="`unet` must have dtype torch.float32.*got torch.bfloat16"):
            NoisedDiffusionClassifierPipeline.from_pretrained(folder, dtype=torch.bfloat16, **arguments)
        return
    half = NoisedDiffusionClassifierPipeline.from_pretrained(folder, dtype=torch.bfloat16, **arguments)
    assert half.unet.dtype == torch.bfloat16
    torch.testing.assert_close(half(images, seed=0, levels=LEVELS).logits, expected, rtol=0.1, atol=1.0)
    half.enable_model_cpu_offload(device="cpu")
    assert half(images, seed=0, levels=LEVELS).logits.shape == (4, 3) and hasattr(half.unet, "_hf_hook")


def test_a_condition_model_is_told_the_class_as_by_hand(images):
    unet = tiny_condition_unet()
    labels = torch.tensor([0, 1, 2, 3])
    h = Denoiser(unet, DDPMScheduler())(images, 0.5, labels)
    time = torch.full((4,), Denoiser(unet, DDPMScheduler()).parametrisation.network_time(torch.tensor([0.5])).item())
    output = unet(images / 1.25**0.5, time, None, class_labels=labels).sample
    torch.testing.assert_close(h, images - 0.5 * output)
    second = tiny_condition_unet(num_class_embeds=None)
    unconditional = Denoiser(unet, DDPMScheduler(), unconditional_unet=second)(images, 0.5)
    torch.testing.assert_close(unconditional, images - 0.5 * second(images / 1.25**0.5, time, None).sample)


CROSS = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}


@pytest.mark.parametrize(
    "settings, match",
    [
        (CROSS, "`unet`.*cross-attention.*prompt_embeddings"),
        ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "`unet`.*cross-attention"),
        ({"addition_embed_type": "text"}, "`unet` must be .*addition_embed_type=None, got addition_embed_type='text'"),
        ({"encoder_hid_dim": 8}, "`unet`.*encoder_hid_dim_type='text_proj'"),
        ({"time_cond_proj_dim": 8}, "`unet`.*time_cond_proj_dim=8"),
        ({"class_embed_type": "projection", "projection_class_embeddings_input_dim": 4}, "no class embedding"),
        ({"num_class_embeds": None}, "no class embedding"),
    ],
)
def test_refuses_condition_models_that_need_more_than_a_label(settings, match):
    with pytest.raises(ValueError, match=match):
        Denoiser(tiny_condition_unet(**settings), DDPMScheduler())


def test_refuses_an_unconditional_network_that_needs_a_prompt():
    second = tiny_condition_unet(num_class_embeds=None, **CROSS)
    with pytest.raises(ValueError, match="`unconditional_unet`.*cross-attention"):
        Denoiser(tiny_unet(), DDPMScheduler(), unconditional_unet=second)

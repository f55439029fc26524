"""A class-conditional and an unconditional checkpoint, of one family or of two."""

import dataclasses
import json

import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler, UNet2DModel
from helpers import edm_files, openai_files
from helpers.openai_files import flags
from safetensors.torch import save_file

from diffusers_ndc import Denoiser
from diffusers_ndc.checkpoints import (
    EDMUNet2DModel,
    OpenAIArguments,
    OpenAIUNet2DModel,
    VPPrecondScheduler,
    read_checkpoints,
    read_openai_checkpoints,
)


def unconditional_flags(name):
    return OpenAIArguments(**flags(name))


OTHERS = {
    "edm e": (None, EDMUNet2DModel, EDMEulerScheduler),
    "edm d": (None, EDMUNet2DModel, VPPrecondScheduler),
    "openai b": (unconditional_flags("b"), UNet2DModel, DDPMScheduler),
    "openai c": (unconditional_flags("c"), OpenAIUNet2DModel, DDPMScheduler),
}
"""Checkpoints without classes: arguments to give, classes of network and scheduler."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Small networks of both families as files, by family and letter: EDM's as published pickles."""
    folder = tmp_path_factory.mktemp("pairs")
    found = {}
    for name in "ade":
        found[f"edm {name}"] = edm_files.save_published(folder / f"{name}.pkl", edm_files.golden(name)[0])
    for name in "abcde":
        found[f"openai {name}"] = openai_files.save_golden(folder / f"{name}.pt", name)
    return found


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("family, shared", [("edm", "edm e"), ("openai", "openai c")])
def test_every_pair_is_read_each_with_its_process(family, shared, other, files):
    """There is one scheduler for both where the processes agree. The second network denoises as it does alone."""
    given, network, scheduler = OTHERS[other]
    if family == "edm":
        pair = read_checkpoints(files["edm a"], files[other], None, given)
        alone = read_checkpoints(files["edm a"])
    else:
        own = OpenAIArguments(**flags("d"))
        pair = read_openai_checkpoints(files["openai d"], files[other], own, given)
        alone = read_openai_checkpoints(files["openai d"], arguments=own)
    assert type(pair.unconditional_unet) is network
    if other == shared:
        assert pair.unconditional_scheduler is None and isinstance(pair.scheduler, scheduler)
    else:
        assert type(pair.unconditional_scheduler) is scheduler
    assert type(pair.unet) is type(alone.unet) and pair.scheduler.config == alone.scheduler.config
    assert alone.unconditional_unet is None and alone.unconditional_scheduler is None
    both = Denoiser(
        pair.unet,
        pair.scheduler,
        unconditional_unet=pair.unconditional_unet,
        unconditional_scheduler=pair.unconditional_scheduler,
    )
    process = pair.unconditional_scheduler or pair.scheduler
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(both(x, 0.5), Denoiser(pair.unconditional_unet, process, num_classes=0)(x, 0.5))


def test_an_edm_network_beside_one_of_openai_gives_its_authors_outputs(files):
    pair = read_openai_checkpoints(files["openai d"], files["edm d"], OpenAIArguments(**flags("d")))
    second = Denoiser(
        pair.unet,
        pair.scheduler,
        unconditional_unet=pair.unconditional_unet,
        unconditional_scheduler=pair.unconditional_scheduler,
    )
    numbers = edm_files.golden("d")[1]
    sigma = numbers["in.sigma"]
    with torch.no_grad():
        h = second(numbers["in.x"], sigma.flatten())
    torch.testing.assert_close(h, numbers["out.D"], rtol=1e-4, atol=1e-4)


def test_the_family_is_told_from_the_file_whatever_its_ending(files, tmp_path):
    """A state dict of EDM has its description beside it, one of OpenAI needs none."""
    checkpoint, _ = edm_files.golden("e")
    path = tmp_path / "edm.safetensors"
    save_file({name: tensor.float().contiguous() for name, tensor in checkpoint.state_dict.items()}, path)
    description = {"class_name": checkpoint.class_name, "init_kwargs": checkpoint.init_kwargs}
    path.with_suffix(".json").write_text(json.dumps(description))
    own = OpenAIArguments(**flags("d"))
    assert type(read_openai_checkpoints(files["openai d"], path, own).unconditional_unet) is EDMUNet2DModel
    assert read_checkpoints(files["edm a"], path).unconditional_scheduler is None
    save_file(openai_files.golden("c")[0], path)
    pair = read_checkpoints(files["edm a"], path, unconditional_arguments=unconditional_flags("c"))
    assert type(pair.unconditional_unet) is OpenAIUNet2DModel

    save_file({"head.weight": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match="`unconditional`.* must have 'other.json' beside it"):
        read_checkpoints(files["edm a"], tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="`unconditional`.* must hold a network of OpenAI.*got a state dict without"):
        read_openai_checkpoints(files["openai d"], tmp_path / "other.safetensors", own)


def test_own_pair_of_openai_shares_images_and_process_only(files):
    given = OpenAIArguments(**flags("d"))
    own = OpenAIArguments(num_heads=4, use_new_attention_order=False, rescale_timesteps=True)
    pair = read_openai_checkpoints(files["openai d"], files["openai c"], given, own)
    unet, unconditional = pair.unet, pair.unconditional_unet
    assert (unet.config.num_class_embeds, unconditional.config.num_class_embeds) == (10, None)
    assert (unet.config.timestep_scale, unconditional.config.timestep_scale) == (1.0, 0.25)
    assert pair.scheduler.config.num_train_timesteps == 4000 and unconditional.config.sample_size == 16
    assert pair.unconditional_scheduler is None
    with pytest.raises(ValueError, match="`num_heads` or `num_head_channels` must be given for `unconditional`"):
        read_openai_checkpoints(files["openai d"], files["openai c"], given, OpenAIArguments(rescale_timesteps=True))


def test_refuses_checkpoints_that_do_not_go_together(files):
    conditional, given = files["edm a"], OpenAIArguments(**flags("d"))
    with pytest.raises(ValueError, match="`path`.* must hold a class-conditional network.*`unconditional`"):
        read_checkpoints(files["edm d"])
    with pytest.raises(ValueError, match="`path`.* must hold a class-conditional network.*`unconditional`"):
        read_openai_checkpoints(files["openai c"], arguments=unconditional_flags("c"))
    with pytest.raises(ValueError, match="`null_class` must be 10, .*got 3"):
        read_checkpoints(conditional, null_class=3)
    for other, arguments in (("edm a", None), ("openai a", unconditional_flags("a"))):
        expected = "`unconditional`.* must hold a network without classes, got one with 10 classes"
        with pytest.raises(ValueError, match=expected):
            read_checkpoints(conditional, files[other], None, arguments)
        with pytest.raises(ValueError, match=expected):
            read_openai_checkpoints(files["openai d"], files[other], given, arguments)
    for suffix in (".pkl", ".pt"):
        with pytest.raises(FileNotFoundError, match="`unconditional` .* does not exist"):
            read_checkpoints(conditional, conditional.with_name(f"nowhere{suffix}"))
        with pytest.raises(FileNotFoundError, match="`unconditional` .* does not exist"):
            read_openai_checkpoints(files["openai d"], conditional.with_name(f"nowhere{suffix}"), given)


def test_refuses_other_images_and_arguments_for_edm(files):
    larger = dataclasses.replace(unconditional_flags("c"), image_size=32)
    expected = (
        "`unconditional`.* must be a network of images 3 x 16 x 16, as `path`.* is, got one of images 3 x 32 x 32"
    )
    with pytest.raises(ValueError, match=expected):
        read_checkpoints(files["edm a"], files["openai c"], None, larger)
    with pytest.raises(ValueError, match=expected):
        read_openai_checkpoints(files["openai d"], files["openai c"], OpenAIArguments(**flags("d")), larger)
    with pytest.raises(ValueError, match="`unconditional_arguments` must be None .*got .'image_size': 32"):
        read_checkpoints(files["edm a"], files["edm e"], None, OpenAIArguments(image_size=32))
    with pytest.raises(ValueError, match="`noise_schedule`.* must be given for `unconditional`"):
        read_checkpoints(files["edm a"], files["openai c"])

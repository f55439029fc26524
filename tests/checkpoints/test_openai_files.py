"""What is told from a file of OpenAI, what must be given, and what is refused."""

import warnings
from collections import OrderedDict

import pytest
import torch
from helpers.openai_files import flags, golden, published_networks, save_golden
from safetensors.torch import save_file

from diffusers_ndc import NoisedDiffusionClassifierPipeline
from diffusers_ndc.checkpoints import (
    OpenAIArguments,
    OpenAICheckpoint,
    convert_openai_network,
    read_openai_checkpoint,
)
from diffusers_ndc.checkpoints.openai_architecture import OpenAIArchitecture, read_architecture
from diffusers_ndc.checkpoints.openai_arguments import complete


ARCHITECTURES = {
    "a": ((32, 32, 64), 32, 1, (False, True, True), True, True, 10),
    "b": ((32, 32, 32), 32, 2, (False, False, True), True, True, None),
    "c": ((32, 64), 32, 1, (False, True), False, True, None),
    "d": ((32, 32, 64), 32, 1, (False, True, True), False, True, 10),
    "e": ((32, 32), 64, 1, (False, True), True, True, 10),
    "f": ((32, 64, 32), 32, 1, (False, True, False), False, False, None),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture_is_told_from_the_weights(name):
    widths, model_channels, blocks, attention, updown, scale_shift, labels = ARCHITECTURES[name]
    told = read_architecture(golden(name)[0], name)
    assert told == OpenAIArchitecture(3, 6, model_channels, widths, blocks, attention, updown, scale_shift, labels)


@pytest.mark.parametrize("save, suffix", [(torch.save, ".pt"), (torch.save, ".pth"), (save_file, ".safetensors")])
def test_every_format_is_read(save, suffix, tmp_path):
    path = tmp_path / f"network{suffix}"
    save(golden("e")[0], path)
    read = read_openai_checkpoint(path, OpenAIArguments(**flags("e")))
    assert read.state_dict.keys() == golden("e")[0].keys()
    assert all(torch.equal(read.state_dict[name], weight) for name, weight in golden("e")[0].items())


@pytest.mark.parametrize("metadata", [False, True])
def test_files_of_older_torch_are_read(metadata, tmp_path):
    weights = OrderedDict(golden("e")[0])
    if metadata:  # what `Module.state_dict` attaches
        weights._metadata = OrderedDict({"": {"version": 1}})
    torch.save(weights, tmp_path / "network.pt", _use_new_zipfile_serialization=False)
    read = read_openai_checkpoint(tmp_path / "network.pt", OpenAIArguments(**flags("e")))
    assert all(torch.equal(read.state_dict[name], weight) for name, weight in golden("e")[0].items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_become_float32(dtype, tmp_path):
    torch.save({name: weight.to(dtype) for name, weight in golden("e")[0].items()}, tmp_path / "network.pt")
    network = convert_openai_network(read_openai_checkpoint(tmp_path / "network.pt", OpenAIArguments(**flags("e"))))
    assert {weight.dtype for weight in network.parameters()} == {torch.float32} and not network.training


@pytest.mark.parametrize(
    "name, gone, missing",
    [
        ("a", "image_size", "`image_size` must be given"),
        ("a", "noise_schedule", "`noise_schedule` must be given"),
        ("a", "predict_xstart", "`predict_xstart` must be given"),
        ("a", "diffusion_steps", "`diffusion_steps` must be given"),
        ("a", "num_head_channels", "`num_heads` or `num_head_channels` must be given"),
        ("a", "use_new_attention_order", "`use_new_attention_order` must be given"),
        ("a", "num_classes", "`num_classes` must be given"),
        ("d", "rescale_timesteps", "`rescale_timesteps` must be given"),
    ],
)
def test_what_the_weights_do_not_tell_must_be_given(name, gone, missing, tmp_path):
    path = save_golden(tmp_path / "own.pt", name)
    some = {flag: value for flag, value in flags(name).items() if flag != gone}
    with pytest.raises(ValueError, match=f"{missing} for `path` .*own.pt.* known of published networks only"):
        read_openai_checkpoint(path, OpenAIArguments(**some))


def test_all_missing_arguments_are_named_at_once(tmp_path):
    path = save_golden(tmp_path / "own.pt", "d")
    with pytest.raises(ValueError) as error:
        read_openai_checkpoint(path)
    named = ["image_size", "noise_schedule", "diffusion_steps", "predict_xstart", "rescale_timesteps", "num_heads"]
    assert all(f"`{name}`" in str(error.value) for name in [*named, "num_head_channels", "num_classes"])


def test_a_checkpoint_cannot_be_made_without_its_arguments():
    architecture = read_architecture(golden("d")[0], "x")
    for gone in ("num_heads", "use_new_attention_order", "rescale_timesteps"):
        some = {flag: value for flag, value in flags("d").items() if flag != gone}
        with pytest.raises(ValueError, match=f"`{gone}`.* must be given for x"):
            OpenAICheckpoint(architecture, OpenAIArguments(**some), golden("d")[0], "x")
    with pytest.raises(ValueError, match="`num_heads` or `num_head_channels` must be given"):
        OpenAIArguments().heads(64)


def test_arguments_without_effect_need_not_be_given(tmp_path):
    """With 1000 steps nothing is rescaled, and with one head both attention orders are the same."""
    assert "rescale_timesteps" not in flags("f") and "use_new_attention_order" not in flags("f")
    read_openai_checkpoint(save_golden(tmp_path / "own.pt", "f"), OpenAIArguments(**flags("f")))


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"image_size": 18}, "`image_size` must be a multiple of 4 for `path`.*got 18"),
        ({"image_size": 0}, "`image_size` must be an integer from 1"),
        ({"num_head_channels": 24}, "must divide the widths with attention.*num_head_channels=24"),
        ({"num_head_channels": None, "num_heads": 3}, "must divide the widths with attention.*num_heads=3"),
        ({"num_head_channels": 0}, "`num_head_channels` must be -1 or an integer"),
        ({"num_classes": 11}, "`num_classes` must be at most 10, .*got 11"),
        ({"noise_schedule": "sqrt"}, "`noise_schedule` must be one of .'linear', 'cosine'., got 'sqrt'"),
        ({"diffusion_steps": 20}, "`diffusion_steps` must be an integer from 21"),
        ({"diffusion_steps": "1000"}, "`diffusion_steps` must be an integer"),
        ({"use_new_attention_order": "False"}, "`use_new_attention_order` must be True, False or None, got 'False'"),
        ({"rescale_timesteps": 1}, "`rescale_timesteps` must be True, False or None, got 1"),
    ],
)
def test_refuses_arguments_that_do_not_fit(changes, match, tmp_path):
    path = save_golden(tmp_path / "own.pt", "a")
    with pytest.raises(ValueError, match=match):
        read_openai_checkpoint(path, OpenAIArguments(**{**flags("a"), **changes}))


def test_head_width_takes_the_place_of_the_number_of_heads(tmp_path):
    path = save_golden(tmp_path / "own.pt", "a")
    network = convert_openai_network(read_openai_checkpoint(path, OpenAIArguments(**flags("a"), num_heads=4)))
    assert network.config.attention_head_dim == 16


def test_only_the_trained_classes_are_kept(tmp_path):
    path = save_golden(tmp_path / "own.pt", "e")
    network = convert_openai_network(read_openai_checkpoint(path, OpenAIArguments(**{**flags("e"), "num_classes": 7})))
    assert network.config.num_class_embeds == 7
    assert torch.equal(network.class_embedding.weight, golden("e")[0]["label_emb.weight"][:7])


def published(file):
    kind = next(kind for kind in published_networks() if file in kind["files"])
    shapes = {name: torch.empty(shape, device="meta") for name, shape in kind["shapes"].items()}
    return shapes, read_architecture(shapes, file)


def test_given_arguments_win_and_what_is_assumed_is_said():
    _, architecture = published("64x64_diffusion.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        known = complete(OpenAIArguments(), architecture, "x", "64x64_diffusion.pt", {})
        complete(OpenAIArguments(**known.given()), architecture, "x", "ema.pt", {})
    assert known.use_new_attention_order is True and known.num_head_channels == 64 and known.num_classes == 1000
    own = OpenAIArguments(num_heads=4, use_new_attention_order=False, num_classes=10, noise_schedule="linear")
    with pytest.warns(UserWarning, match="x has the tensors of 64x64_diffusion.pt.*'image_size': 64"):
        arguments = complete(own, architecture, "x", "ema.pt", {})
    assert arguments.heads(384) == 4 and arguments.num_head_channels is None
    assert (arguments.use_new_attention_order, arguments.noise_schedule, arguments.num_classes) == (
        False,
        "linear",
        10,
    )
    assert (arguments.image_size, arguments.diffusion_steps) == (64, 1000)


def test_an_architecture_is_published_only_with_all_its_names_and_shapes():
    """A tensor more, less, or of another shape is an error, even if the architecture is recognised by the others."""
    shapes, architecture = published("cifar10_uncond_50M_500K.pt")
    arguments = complete(OpenAIArguments(), architecture, "x", "cifar10_uncond_50M_500K.pt", {})
    name = "input_blocks.2.0.out_layers.0.weight"
    wrong = [
        {n: tensor for n, tensor in shapes.items() if n != name},
        {**shapes, name: torch.empty(64, device="meta")},
        {**shapes, "input_blocks.2.0.extra.weight": torch.empty(1, device="meta")},
    ]
    for tensors in wrong:
        assert read_architecture(tensors, "x") == architecture
        with pytest.raises(ValueError, match="x must have"):
            convert_openai_network(OpenAICheckpoint(architecture, arguments, tensors, "x"))


def test_published_pairs_go_together_and_others_do_not():
    for conditional, unconditional, fits in [
        ("256x256_diffusion.pt", "256x256_diffusion_uncond.pt", True),
        ("imagenet64_cond_270M_250K.pt", "imagenet64_uncond_100M_1500K.pt", True),
        ("64x64_diffusion.pt", "imagenet64_uncond_100M_1500K.pt", False),
        ("64x64_diffusion.pt", "256x256_diffusion_uncond.pt", False),
    ]:
        arguments = [complete(OpenAIArguments(), published(f)[1], f, f, {}) for f in (conditional, unconditional)]
        names = ("image_size", "noise_schedule", "diffusion_steps", "predict_xstart")
        assert all(getattr(arguments[0], name) == getattr(arguments[1], name) for name in names) is fits


def without(tensors, *prefixes):
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefixes)}


def doubled_input(tensors):
    weight = tensors["input_blocks.0.0.weight"]
    return {**tensors, "input_blocks.0.0.weight": torch.cat([weight, weight], dim=1)}


def classifier(tensors):
    pooled = {"out.2.positional_embedding": torch.ones(64, 17), "out.2.qkv_proj.weight": torch.ones(192, 64, 1)}
    return {**without(tensors, "output_blocks", "out."), **pooled}


OPTIMIZER = {"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
NORM = "input_blocks.1.0.in_layers.0.weight"
FOREIGN = {
    "classifier": (classifier, "noisy classifiers"),
    "upsampler": (doubled_input, "super-resolution network"),
    "optimizer": (lambda tensors: OPTIMIZER, "got the state of an optimizer"),
    "another network": (lambda tensors: {"conv_in.weight": torch.ones(2)}, "without 'time_embed.0.weight'"),
    "nothing": (lambda tensors: {}, "without 'time_embed.0.weight'"),
    "wrapped": (lambda tensors: {"state_dict": tensors}, "got dict at 'state_dict'"),
    "list": (lambda tensors: list(tensors.values()), "got list"),
    "names that are numbers": (lambda tensors: {0: torch.ones(1)}, "name of type int"),
    "integers": (lambda tensors: {**tensors, NORM: torch.ones(32, dtype=torch.long)}, "got torch.int64"),
    "no middle": (lambda tensors: without(tensors, "middle_block"), "middle_block.0.emb_layers.1.weight"),
    "no output": (lambda tensors: without(tensors, "out."), "out.2.weight"),
    "a block is gone": (lambda tensors: without(tensors, "input_blocks.3."), "numbered without a gap"),
    "a level is gone": (lambda tensors: without(tensors, "output_blocks.5."), "numbered without a gap"),
    "a block too far away": (
        lambda tensors: {**tensors, "output_blocks.9999.0.x.weight": torch.ones(1)},
        "numbered without a gap",
    ),
    "upsampler is gone": (lambda tensors: without(tensors, "output_blocks.1.2"), "as many blocks at each level"),
    "a bias is gone": (lambda tensors: without(tensors, "out.0.bias"), "'conv_norm_out.bias' must have the shape"),
    "a tensor more": (lambda tensors: {**tensors, "head.weight": torch.ones(1)}, "got 'head.weight'"),
    "a number as a tensor": (lambda tensors: {**tensors, "time_embed.0.weight": torch.tensor(1.0)}, "shape needed"),
    "odd width": (
        lambda tensors: {**tensors, "output_blocks.4.0.out_layers.3.weight": torch.ones(33, 32, 3, 3)},
        "multiples of 32, got .33",
    ),
    "odd attention": (
        lambda tensors: {**tensors, "middle_block.1.qkv.weight": torch.ones(95, 64, 1)},
        "with which it cannot be built",
    ),
    "four channels": (
        lambda tensors: {**tensors, "input_blocks.0.0.weight": torch.ones(32, 4, 3, 3)},
        "images of 1 or 3 channels",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_refuses_other_and_damaged_networks(name, tmp_path):
    change, match = FOREIGN[name]
    torch.save(change(golden("a")[0]), tmp_path / "file.pt")
    with pytest.raises(ValueError, match=rf"`path` \('.*file.pt'\) must .*{match}"):
        read = read_openai_checkpoint(tmp_path / "file.pt", OpenAIArguments(**flags("a")))
        convert_openai_network(read)
    assert [path.name for path in tmp_path.iterdir()] == ["file.pt"]


def test_refuses_weights_that_are_not_finite(tmp_path):
    broken = torch.full_like(golden("a")[0][NORM], torch.nan)
    path = save_golden(tmp_path / "file.pt", "a", **{NORM: broken})
    with pytest.raises(ValueError, match="`unet` must have finite weights"):
        NoisedDiffusionClassifierPipeline.from_openai_checkpoint(path, **flags("a"))


def test_refuses_paths_that_are_no_state_dicts(tmp_path):
    with pytest.raises(FileNotFoundError, match="`path` .* does not exist"):
        read_openai_checkpoint(tmp_path / "nowhere.pt")
    (tmp_path / "x.ckpt").touch()
    with pytest.raises(ValueError, match="`path` .* must end in one of .*got '.ckpt'"):
        read_openai_checkpoint(tmp_path / "x.ckpt")

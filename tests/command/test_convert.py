"""`diffusers-ndc convert`: checkpoints of both families to folders."""

import json

import pytest
from helpers.edm_files import golden, save_published
from helpers.openai_files import flags, save_golden

from diffusers_ndc import NoisedDiffusionClassifierPipeline
from diffusers_ndc.command import main


OTHER = {"num_heads": 4, "use_new_attention_order": False, "rescale_timesteps": True}
"""Flags of the network `c` that it does not share with `d`."""


def words_of(given):
    """Flags of OpenAI's as options."""
    for name, value in given.items():
        yield from (f"--{name.replace('_', '-')}", str(value).lower())


def test_a_checkpoint_of_edm_with_names(tmp_path, capsys):
    path = save_published(tmp_path / "c2.pkl", golden("c2")[0])
    assert main(["convert", str(path), "--output", str(tmp_path / "out"), "--class-names", *"abcdefghij"]) == 0
    printed = capsys.readouterr().out
    assert "network        UNet2DModel, images 3 x 16 x 16, 10 class embeddings" in printed and "class_mean" in printed
    assert NoisedDiffusionClassifierPipeline.from_pretrained(tmp_path / "out").config.id2label[9] == "j"
    assert main(["convert", str(path), "--output", str(tmp_path / "out"), "--num-heads", "4"]) == 1
    assert "['--num-heads'] must be left out" in capsys.readouterr().err


def test_checkpoints_of_openai_with_flags(tmp_path, capsys):
    path, other = (str(save_golden(tmp_path / f"{name}.pt", name)) for name in "dc")
    output = ["--output", str(tmp_path / "out")]
    assert main(["convert", path, *output]) == 1 and "must be given" in capsys.readouterr().err
    pair = ["--unconditional", other, "--unconditional-arguments", json.dumps(OTHER)]
    assert main(["convert", path, *pair, *words_of(flags("d")), *output]) == 0
    assert "unconditional  DDPMScheduler" not in capsys.readouterr().out.partition("denoiser")[2]
    pipe = NoisedDiffusionClassifierPipeline.from_pretrained(tmp_path / "out")
    expected = NoisedDiffusionClassifierPipeline.from_openai_checkpoint(
        path, other, **flags("d"), unconditional_arguments=OTHER
    )
    assert dict(pipe.unet.config)["num_class_embeds"] == dict(expected.unet.config)["num_class_embeds"]
    assert pipe.denoiser.null_source == "unconditional_unet"


@pytest.mark.parametrize(
    "words, said",
    [
        (["nowhere.pkl"], "`CHECKPOINT` must exist, got nowhere.pkl"),
        (["https://host/a.pkl", "--unconditional", "nowhere.pt"], "`--unconditional` must exist, got nowhere.pt"),
        (["https://host/a.pkl", "--unconditional-arguments", "{"], "`--unconditional-arguments` must be JSON"),
        (["https://host/a.pkl", "--use-new-attention-order", "maybe"], "maybe"),
    ],
)
def test_options_are_refused_before_any_work(words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["convert", *words, "--output", "out"])
    assert ended.value.code == 2 and said in capsys.readouterr().err

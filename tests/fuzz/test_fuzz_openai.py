"""Checkpoints of OpenAI, what is said of them, and addresses, as people and accidents may leave them."""

import pytest
import torch
from helpers.fuzzing import HOSTILE, cases
from helpers.openai_files import flags, golden
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save_file

from diffusers_ndc.checkpoints import OpenAIArguments, OpenAICheckpoint, convert_openai_network, read_openai_checkpoint
from diffusers_ndc.checkpoints.downloads import locate
from diffusers_ndc.checkpoints.openai_architecture import read_architecture
from diffusers_ndc.checkpoints.openai_arguments import complete


SENSIBLE = [None, True, False, -1, 1, 2, 4, 8, 10, 16, 32, 64, 1000, 4000, "linear", "cosine"]
VALUES = st.sampled_from(SENSIBLE) | st.sampled_from(HOSTILE)


@cases(400)
@given(
    name=st.sampled_from("ade"),
    changes=st.dictionaries(st.sampled_from(list(flags("d") | flags("a"))), VALUES, max_size=3),
)
@example("a", {})
@example("d", {"num_heads": 10**400})
def test_arguments_make_a_network_or_are_refused(name, changes):
    values = {**flags(name), **changes}
    try:
        arguments = complete(OpenAIArguments(**values), read_architecture(golden(name)[0], name), name, name, {})
    except ValueError as error:
        assert changes and str(error).startswith("`"), error
        return
    assert arguments.given().keys() <= {*values, "num_heads"}
    assert 64 % arguments.heads(64) == 0 and 0 < arguments.timestep_scale <= 1000 / 21


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """Makes a checkpoint in which some of the bytes that are no weights are others, and the end is missing."""
    folder = tmp_path_factory.mktemp("openai")
    torch.save(golden("e")[0], folder / "network.pt")
    save_file(golden("e")[0], folder / "network.safetensors")
    whole = {suffix: (folder / f"network{suffix}").read_bytes() for suffix in (".pt", ".safetensors")}
    telling = {
        ".pt": [*range(20_000), *range(len(whole[".pt"]) - 20_000, len(whole[".pt"]))],
        ".safetensors": range(int.from_bytes(whole[".safetensors"][:8], "little") + 8),
    }

    def make(suffix, changes, end):
        data = bytearray(whole[suffix])
        for place, byte in changes:
            data[telling[suffix][place % len(telling[suffix])]] = byte
        (folder / f"damaged{suffix}").write_bytes(data[: int(end * len(data))])
        return folder / f"damaged{suffix}"

    return make


@cases(300)
@given(
    suffix=st.sampled_from([".pt", ".safetensors"]),
    changes=st.lists(
        st.tuples(st.integers(0, 2**30), st.integers(0, 255) | st.sampled_from(b"rqj.2QcR\x85\x93\x94019")), max_size=6
    ),
    end=st.just(1.0) | st.floats(0, 1),
)
@example(".pt", [], 1.0)
@example(".safetensors", [], 1.0)
def test_damaged_bytes_give_a_network_or_are_refused(damaged, suffix, changes, end):
    path = damaged(suffix, changes, end)
    try:
        network = convert_openai_network(read_openai_checkpoint(path, OpenAIArguments(**flags("e"))))
    except ValueError as error:
        assert changes or end < 1, "an undamaged file is refused"
        assert str(error).startswith("`path` ('"), error
        return
    assert sum(weight.numel() for weight in network.parameters()) == 500_998


SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 6, 10, 32, 33, 64, 96, 192, 256, 2**12]), max_size=4).map(tuple)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@cases(150)
@given(
    changes=st.dictionaries(st.integers(0, 10**6), SHAPES, max_size=3),
    gone=st.sets(st.integers(0, 10**6), max_size=2),
    more=st.dictionaries(
        st.from_regex(r"(input|output)_blocks\.[0-9]{1,5}\.[012]\.(conv|op|qkv|in_layers\.0)\.weight", fullmatch=True),
        SHAPES,
        max_size=2,
    ),
)
@example({}, set(), {})
@example({6185: ()}, set(), {})
@example({}, set(), {"output_blocks.9999.0.conv.weight": (1,)})
def test_other_shapes_give_a_network_or_are_refused(changes, gone, more):
    shapes = {name: tuple(weight.shape) for name, weight in golden("e")[0].items()}
    names = sorted(shapes)
    shapes |= {names[number % len(names)]: shape for number, shape in changes.items()} | more
    for number in gone:
        shapes.pop(names[number % len(names)], None)
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    try:
        architecture = read_architecture(tensors, "`path`")
        arguments = complete(OpenAIArguments(**flags("e")), architecture, "`path`", "file.pt", {})
        network = convert_openai_network(OpenAICheckpoint(architecture, arguments, tensors, "`path`"))
    except ValueError as error:
        assert "`path`" in str(error) and (changes or gone or more), error
        return
    assert sum(weight.numel() for weight in network.parameters()) == sum(w.numel() for w in tensors.values())


PIECES = [
    "https",
    "http",
    "hf",
    "ftp",
    "HTTPS",
    "://",
    "/",
    "//",
    ":",
    "@",
    "#",
    "#sha256=",
    "0" * 64,
    "?",
    "%2F",
    "..",
]
PIECES += [
    "me",
    "networks",
    "127.0.0.1",
    "[",
    "]",
    "::1",
    "file.pt",
    ".pt",
    "main",
    "refs/pr/1",
    " ",
    "\0",
    "\ud800",
    "é",
]


@cases(600)
@given(address=st.lists(st.sampled_from(PIECES) | st.text(max_size=2), max_size=10).map("".join))
@example("https://[/file.pt")
@example("hf://me/networks@refs/pr/1/file.pt")
@example("https://127.0.0.1/%2e%2e%2f.pt")
@example("hf://me/networks/a//file.pt")
def test_an_address_is_located_or_refused(address):
    try:
        location = locate(address, "path", (".pt",))
    except (FileNotFoundError, ValueError) as error:
        assert str(error).startswith("`path` ("), error
        return
    assert location.suffix == ".pt" and location.scheme in ("https", "http", "hf")
    assert location.scheme != "http" or location.sha256 is not None

"""What a checkpoint may hold: a network, and nothing that runs."""

import json
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.edm_files import Persistent, golden, save_published
from safetensors.torch import save_file

from diffusers_ndc.checkpoints import EDMCheckpoint, convert_network, convert_scheduler, read_checkpoint


@pytest.fixture(scope="module")
def small():
    """The smallest golden network: VP, without classes."""
    return golden("d")[0]


@pytest.fixture(scope="module")
def published(small, tmp_path_factory):
    """That network in a published-style pickle."""
    return save_published(tmp_path_factory.mktemp("edm") / "published.pkl", small)


def test_a_published_pickle_holds_what_was_pickled(small, published):
    read = read_checkpoint(published)
    assert (read.class_name, read.model_type, read.num_classes) == ("VPPrecond", "SongUNet", 0)
    assert read.init_kwargs == small.init_kwargs
    assert read.state_dict.keys() == small.state_dict.keys()
    assert all(torch.equal(read.state_dict[key], value) for key, value in small.state_dict.items())


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ["d", "b"])
def test_every_protocol_of_pickle_is_read(name, protocol, tmp_path):
    checkpoint = golden(name)[0]
    read = read_checkpoint(save_published(tmp_path / "network.pkl", checkpoint, protocol=protocol))
    assert (read.class_name, read.init_kwargs) == (checkpoint.class_name, checkpoint.init_kwargs)
    assert read.state_dict.keys() == checkpoint.state_dict.keys()
    assert all(torch.equal(read.state_dict[key], value.float()) for key, value in checkpoint.state_dict.items())


@pytest.mark.parametrize("protocol", range(6))
def test_numbers_of_numpy_become_numbers_of_python(protocol, tmp_path):
    checkpoint = golden("b")[0]
    changes = {"label_dim": np.int64(10), "dropout": np.float32(0.25), "use_fp16": np.bool_(False)}
    kwargs = {**checkpoint.init_kwargs, **changes, "num_blocks": np.uint8(checkpoint.init_kwargs["num_blocks"])}
    scalars = EDMCheckpoint(checkpoint.class_name, kwargs, checkpoint.state_dict, "x")
    read = read_checkpoint(save_published(tmp_path / "network.pkl", scalars, protocol=protocol))
    assert read.init_kwargs == kwargs and read.num_classes == 10
    assert [type(read.init_kwargs[name]) for name in changes] == [int, float, bool]
    assert type(read.init_kwargs["num_blocks"]) is int
    assert convert_network(read).config.num_class_embeds == 10


@pytest.mark.parametrize("code", "?bBhHiIqQefd")
def test_numbers_of_numpy_of_every_type(code, small, tmp_path):
    value = np.array([1]).astype(code)[0]
    scalar = EDMCheckpoint("VPPrecond", {**small.init_kwargs, "epsilon_t": value}, small.state_dict, "x")
    read = read_checkpoint(save_published(tmp_path / "network.pkl", scalar)).init_kwargs["epsilon_t"]
    assert type(read) is type(value.item()) and read == 1


@pytest.mark.parametrize(
    "value", [np.complex128(1), np.longdouble(1), np.datetime64(1, "s"), np.str_("x"), np.ones(1), np.dtype("i8")]
)
def test_refuses_other_values_of_numpy(value, small, tmp_path):
    other = EDMCheckpoint("VPPrecond", {**small.init_kwargs, "epsilon_t": value}, small.state_dict, "x")
    with pytest.raises(ValueError, match="cannot be read"):
        read_checkpoint(save_published(tmp_path / "network.pkl", other))


@pytest.mark.parametrize("suffix, save", [(".pt", torch.save), (".safetensors", save_file)])
def test_state_dicts_are_read_with_their_description(suffix, save, small, tmp_path):
    path = tmp_path / f"network{suffix}"
    save(small.state_dict, path)
    with pytest.raises(FileNotFoundError, match="network.json"):
        read_checkpoint(path)
    path.with_suffix(".json").write_text(json.dumps({"class_name": "VPPrecond"}))
    with pytest.raises(ValueError, match="init_kwargs"):
        read_checkpoint(path)
    description = {"class_name": "VPPrecond", "init_kwargs": small.init_kwargs}
    path.with_suffix(".json").write_text(json.dumps(description))
    read = read_checkpoint(path)
    expected = convert_network(small).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in convert_network(read).state_dict().items())
    assert convert_scheduler(read).config.sigma_min == 0.0009765625


# Hand-written pickles. MARK stands for a shell command that leaves a file behind, were it run.
def text(value):
    data = value.encode()
    return b"\x8c" + bytes([len(data)]) + data


def named(module, name):
    """STACK_GLOBAL"""
    return text(module) + text(name) + b"\x93"


def call(module, name, *arguments):
    """REDUCE"""
    return b"\x80\x04" + named(module, name) + b"(" + b"".join(arguments) + b"tR."


def storage(payload):
    return call("torch.storage", "_load_from_bytes", b"B" + struct.pack("<I", len(payload)) + payload)


def build(module, name, state):
    """BUILD on a global itself."""
    return b"\x80\x04" + named(module, name) + state + b"b."


def many(module, name, *arguments):
    """One call of 1000 values, 1000 times over by the memo."""
    function, arguments = named(module, name) + b"q\x00", b"(" + b"".join(arguments) + b"tq\x01"
    return b"\x80\x04(" + function + arguments + b"R" + b"h\x00h\x01R" * 999 + b"t."


def scalar(dtype, raw):
    return call("numpy.core.multiarray", "scalar", dtype, b"C" + bytes([len(raw)]) + raw)


def number_type(code, order="<"):
    made = named("numpy", "dtype") + b"(" + text(code) + b"\x89\x88tR"
    return made + b"(K\x03" + text(order) + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


def set_of(items):
    """A set of a list, as protocols 0 to 3 pickle it."""
    return call("builtins", "set", b"](" + items + b"e")


EVIL = text("touch MARK")
SLOTS = b"(N}" + text("function") + named("collections", "OrderedDict") + b"st"
PLAIN = b"}" + text("function") + named("collections", "OrderedDict") + b"s"
MODULE_DICT = named("torch.nn.modules.container", "ModuleDict")
TENSOR = ("torch._utils", "_rebuild_tensor_v2")
EMPTY = pickle.dumps(torch.ones(2), protocol=4)[:-1]  # a genuine tensor, left on the stack
HEADER = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
FAR_AWAY = b"r\xff\xff\xff\x7f"
HOSTILE = {
    "os.system": call("os", "system", EVIL),
    "posix.system, protocol 0": b"cposix\nsystem\n(S'touch MARK'\ntR.",
    "INST": b"(S'touch MARK'\nios\nsystem\n.",
    "OBJ": b"(" + named("os", "system") + EVIL + b"o.",
    "NEWOBJ subprocess.Popen": b"\x80\x04" + named("subprocess", "Popen") + b"(" + EVIL + b"t\x81.",
    "builtins.eval": call("builtins", "eval", text("open('MARK', 'w')")),
    "builtins.exec": call("builtins", "exec", text("open('MARK', 'w')")),
    "builtins.getattr": call("builtins", "getattr", named("os", "system"), text("__call__")),
    "builtins.open": call("builtins", "open", text("MARK"), text("w")),
    "builtins.__import__": call("builtins", "__import__", text("os")),
    "copyreg._reconstructor": call("copyreg", "_reconstructor", named("builtins", "object")),
    "copyreg extension": b"\x80\x02\x82\x01.",
    "functools.partial": call("functools", "partial", named("os", "system"), EVIL),
    "operator.attrgetter": call("operator", "attrgetter", text("system")),
    "operator.methodcaller": call("operator", "methodcaller", text("system"), EVIL),
    "importlib.import_module": call("importlib", "import_module", text("this")),
    "attribute chain": call("torch.storage", "os.system", EVIL),
    "attribute chain from a permitted name": call("torch._utils", "_rebuild_tensor_v2.__globals__.get", text("os")),
    "attribute chain from a permitted class": call("collections", "OrderedDict.__init_subclass__"),
    "torch.load": call("torch", "load", text("MARK")),
    "numpy.load": call("numpy", "load", text("MARK")),
    "numpy object array": call("numpy._core.multiarray", "_reconstruct", text("O")),
    "module of the package itself": call("diffusers_ndc.checkpoints.unpickling", "Function", text("x")),
    "storage that is a pickle of its own": storage(call("os", "system", EVIL)),
    "storage with another global": storage(HEADER + call("os", "system", EVIL)),
    "storage that is a zip archive": storage(b"PK\x03\x04" + b"\0" * 60),
    "storage of objects": storage(HEADER + b"\x80\x02ctorch\nUntypedStorage\n."),
    "storage with a foreign persistent id": storage(HEADER + b"\x80\x02" + b"X\x04\0\0\0evilQ."),
    "persistent id": b"\x80\x04" + text("evil") + b"Q.",
    "persistent id, protocol 0": b"Pevil\n.",
    "BUILD on a permitted function": build(*TENSOR, PLAIN),
    "BUILD on a permitted function's slots": build(*TENSOR, SLOTS),
    "BUILD on the module class": build("torch.nn.modules.container", "ModuleDict", PLAIN),
    "BUILD on the module class's slots": build("torch.nn.modules.container", "ModuleDict", SLOTS),
    "BUILD on the dictionary class": build("collections", "OrderedDict", PLAIN),
    "BUILD on the dictionary class's slots": build("collections", "OrderedDict", SLOTS),
    "BUILD on a tensor": EMPTY + PLAIN + b"b.",
    "BUILD on a module with no dictionary": (
        b"\x80\x04" + named("torch.nn.modules.container", "ModuleDict") + b")\x81" + text("state") + b"b."
    ),
    "call of a dictionary": b"\x80\x04}" + EVIL + b"\x85R.",
    "call of a tensor": EMPTY + EVIL + b"\x85R.",
    "recursion": b"\x80\x04}\x94" + text("ema") + b"h\x00s.",
    "memo place far away": b"\x80\x04}" + FAR_AWAY + b".",
    "memo place far away in a storage": storage(HEADER + b"\x80\x02}" + FAR_AWAY + b"."),
    "values whose text would be endless": storage(HEADER + b"\x80\x02K\x01" + b"2\x86" * 60 + b"Q."),
}

# Misuse of what protocols 0 to 3 and numbers of numpy need, and what the message must say.
MALFORMED = {
    "set of lists": (set_of(b"]"), "set of something other than"),
    "set of sets": (set_of(b"\x8f"), "set of something other than"),
    "set of tuples": (set_of(b")"), "set of something other than"),
    "set of functions": (set_of(named("collections", "OrderedDict")), "set of something other than"),
    "set of a text": (call("builtins", "set", text("abc")), "set of something other than"),
    "set of a dictionary": (call("builtins", "set", b"}"), "set of something other than"),
    "set of nothing": (call("builtins", "set"), "TypeError"),
    "set, protocol 0": (b"c__builtin__\nset\n((lp0\n(lp1\natR.", "set of something other than"),
    "many sets of one list": (many("builtins", "set", b"](" + b"N" * 1000 + b"e"), "sets and bytes"),
    "many bytes of one text": (
        many("_codecs", "encode", b"X\xe8\x03\0\0" + b"a" * 1000, text("latin1")),
        "sets and bytes",
    ),
    "BUILD on the set function": (build("builtins", "set", PLAIN), "sets the state of a function"),
    "BUILD on a set": (set_of(b"K\x01")[:-1] + PLAIN + b"b.", "AttributeError"),
    "NEWOBJ of a set": (b"\x80\x04" + named("builtins", "set") + b"]\x85\x81.", "NEWOBJ"),
    "object": (call("builtins", "object"), "TypeError"),
    "encode with another codec": (call("_codecs", "encode", text("a"), text("rot13")), "other than a text in latin1"),
    "encode without a codec": (call("_codecs", "encode", text("a")), "TypeError"),
    "encode of a number": (call("_codecs", "encode", b"K\x01", text("latin1")), "other than a text in latin1"),
    "_reconstructor of a dictionary": (
        call("copy_reg", "_reconstructor", named("collections", "OrderedDict"), named("builtins", "object"), b"N"),
        "other than an empty ModuleDict",
    ),
    "_reconstructor with a state": (
        call("copyreg", "_reconstructor", MODULE_DICT, named("builtins", "object"), b"}"),
        "other than an empty ModuleDict",
    ),
    "_reconstructor with another base": (
        call("copyreg", "_reconstructor", MODULE_DICT, MODULE_DICT, b"N"),
        "other than an empty ModuleDict",
    ),
    "number with too few bytes": (scalar(number_type("i8"), b"\0" * 7), "number of 7 bytes, which needs 8"),
    "number with too many bytes": (scalar(number_type("i1", "|"), b"\0" * 255), "number of 255 bytes, which needs 1"),
    "number without bytes": (
        call("numpy._core.multiarray", "scalar", number_type("i8"), text("12345678")),
        "number without bytes",
    ),
    "number of objects": (scalar(number_type("O8", "|"), b"\0" * 8), "number of the type 'O8'"),
    "number of structures": (scalar(number_type("V8", "|"), b"\0" * 8), "number of the type 'V8'"),
    "number of a type that is a list": (
        scalar(named("numpy", "dtype") + b"]\x85R", b"\0" * 8),
        "number of the type []",
    ),
    "number of an endless type": (
        scalar(named("numpy", "dtype") + b"K\x01" + b"2\x86" * 60 + b"\x85R", b"\0" * 8),
        "number of the type ((",
    ),
    "number without a type": (scalar(text("i8"), b"\0" * 8), "number without a type"),
    "big-endian number": (scalar(number_type("i8", ">"), b"\0" * 8), "not little-endian"),
}
HOSTILE |= {name: data for name, (data, _) in MALFORMED.items()}

LOAD_EACH = """
import json, sys
from diffusers_ndc.checkpoints import read_checkpoint
found, events = {}, []
read_checkpoint(sys.argv[1])  # all that torch and numpy import at their first use
sys.addaudithook(lambda event, arguments: events.append((event, str(arguments[0]) if arguments else "")))
for path in sys.argv[1:]:
    del events[:]
    try:
        outcome = len(read_checkpoint(path).state_dict)
    except ValueError as error:
        outcome = str(error)
    seen = [list(event) for event in events]
    found[path] = outcome, seen
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def audited(small, published, tmp_path_factory):
    """Outcome and audit events of reading each hostile pickle, in one process; the genuine one is read at both
    ends."""
    folder = tmp_path_factory.mktemp("hostile")
    marker = folder / "ran"
    paths = {}
    for number, (name, data) in enumerate(HOSTILE.items()):
        path = paths[name] = folder / f"{number}.pkl"
        body = data.replace(EVIL, text(f"touch {marker}")).replace(text("MARK"), text(str(marker)))
        path.write_bytes(body.replace(b"MARK", str(marker).encode()))
    touching = f"open({str(marker)!r}, 'w')"
    paths["source text"] = save_published(folder / "source.pkl", small, source=touching)
    paths["genuine"] = published
    paths["genuine again"] = published.with_name("again.pkl")
    paths["genuine again"].write_bytes(published.read_bytes())
    arguments = [published, *(path for name, path in paths.items() if name != "genuine")]
    result = subprocess.run(
        [sys.executable, "-c", LOAD_EACH, *map(str, arguments)], cwd=folder, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    return {name: (path, *found[str(path)]) for name, path in paths.items()}, marker


@pytest.mark.parametrize("name", HOSTILE)
def test_a_pickle_that_would_run_code_is_refused_and_nothing_runs(name, audited):
    """In the audit of the interpreter only the file itself is opened: no import, no exec, no process."""
    (path, outcome, events), marker = audited[0][name], audited[1]
    expected = f"`path` ('{path}') must be a pickle of an EDM network, got a file that cannot be read ("
    assert isinstance(outcome, str) and outcome.startswith(expected), outcome
    assert outcome.endswith("Nothing in it was run.")
    assert events == [["open", str(path)]] and not marker.exists()


@pytest.mark.parametrize("name", ["source text", "genuine", "genuine again"])
def test_source_text_is_not_run_and_refusals_leave_no_trace(name, small, audited):
    path, outcome, events = audited[0][name]
    assert outcome == len(small.state_dict) and events == [["open", str(path)]] and not audited[1].exists()


def test_refusals_name_what_was_found(audited):
    assert "names os.system, which no EDM network needs" in audited[0]["os.system"][1]
    assert "names torch.storage.os.system" not in audited[0]["os.system"][1]
    assert "names torch.UntypedStorage in a storage" in audited[0]["storage of objects"][1]
    assert "persistent id" in audited[0]["persistent id"][1]
    assert "has the memo index 2147483647" in audited[0]["memo place far away"][1]
    assert len(audited[0]["values whose text would be endless"][1]) < 1000


@pytest.mark.parametrize("name", MALFORMED)
def test_misuse_of_what_older_pickles_need_is_refused_by_name(name, audited):
    assert MALFORMED[name][1] in audited[0][name][1]


@pytest.mark.parametrize(
    "size, stride, offset",
    [((3, 3), (3, 1), 0), ((2,), (1,), 3), ((10**9,), (0,), 0), ((-1,), (1,), 0), ((2,), (1.0,), 0)],
)
def test_tensors_stay_within_their_storage(size, stride, offset, tmp_path):
    class Odd:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (torch.ones(4)._typed_storage(), offset, size, stride, False, {})

    path = tmp_path / "odd.pkl"
    path.write_bytes(pickle.dumps({"ema": Odd()}, protocol=4))
    with pytest.raises(ValueError, match="outside of its storage"):
        read_checkpoint(path)


def test_refuses_damaged_and_foreign_files(published, small, tmp_path):
    whole = published.read_bytes()
    path = tmp_path / "bad.pkl"
    for kept in (0, 1, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=r"`path` .*bad.pkl.* cannot be read"):
            read_checkpoint(path)
    for foreign, match in [({"G": 1}, r"under the key 'ema', but \['G'\]"), ([1, 2], "but list")]:
        path.write_bytes(pickle.dumps(foreign))
        with pytest.raises(ValueError, match=match):
            read_checkpoint(path)
    torch.save(small.state_dict, path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_checkpoint(path)
    archive = path.read_bytes()
    for suffix in (".pt", ".safetensors"):
        path = tmp_path / f"bad{suffix}"
        path.write_bytes(archive[:1000])
        path.with_suffix(".json").write_text(json.dumps({"class_name": "VPPrecond", "init_kwargs": small.init_kwargs}))
        with pytest.raises(ValueError, match="cannot be read"):
            read_checkpoint(path)
    with pytest.raises(FileNotFoundError, match="`path` .* does not exist"):
        read_checkpoint(tmp_path / "nowhere.pkl")
    with pytest.raises(ValueError, match="`path` .* must end in one of .*got '.onnx'"):
        (tmp_path / "x.onnx").touch()
        read_checkpoint(tmp_path / "x.onnx")


def test_refuses_other_networks(small, tmp_path):
    path = tmp_path / "other.pkl"
    save_published(path, small, ema=Persistent("StyleGAN2Discriminator", {"_modules": {}}, ""))
    with pytest.raises(ValueError, match="`path`.*other.pkl"):
        read_checkpoint(path)
    state = {"_parameters": {}, "_buffers": {}, "_modules": {}, "_init_args": (), "_init_kwargs": {}}
    save_published(path, small, ema=Persistent("SomePrecond", state, ""))
    with pytest.raises(ValueError, match="`path` .* must hold one of .'EDMPrecond'.*got a SomePrecond"):
        read_checkpoint(path)
    save_published(path, small, ema=Persistent("EDMPrecond", state, "", version=7))
    with pytest.raises(ValueError, match="version 7"):
        read_checkpoint(path)
    save_published(path, small, model_class="DhariwalUNet")
    with pytest.raises(ValueError, match="`path` .* must hold a SongUNet, as its arguments state, got a DhariwalUNet"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"num_heads": 4}, "num_heads"),
        ({"img_resolution": None}, "img_resolution=None"),
        ({"label_dim": "10"}, "label_dim='10'"),
        ({"channel_mult": [1, 2.5]}, "channel_mult"),
        ({"channel_mult": []}, "at least one number in channel_mult"),
        ({"num_blocks": 1000}, "at most 1000 blocks in all, got 2002"),
        ({"encoder_type": "skip"}, "encoder_type='skip'"),
        ({"resample_filter": [1, 2, 1]}, "resample_filter"),
        ({"resample_filter": [1, 3, 3, 1]}, "resample_filter.*another one"),
        ({"num_blocks": 2}, "must have the weights of the network"),
        ({"label_dim": 10}, "class_embedding"),
        ({"model_channels": 32}, "'conv_in.bias' must have the shape .32,., got .16,"),
    ],
)
def test_refuses_arguments_that_cannot_be_built_or_do_not_fit(changes, match, small):
    changed = EDMCheckpoint("VPPrecond", {**small.init_kwargs, **changes}, small.state_dict, "`path` ('x')")
    with pytest.raises(ValueError, match=f"`path`.*{match}"):
        convert_network(changed)


def test_refuses_checkpoints_that_do_not_say_their_size(small):
    rest = {name: value for name, value in small.init_kwargs.items() if name != "img_resolution"}
    with pytest.raises(ValueError, match="must have the arguments .*got none for .'img_resolution'."):
        convert_network(EDMCheckpoint("VPPrecond", rest, small.state_dict, "x"))


def test_refuses_weights_too_many_and_narrow_adm(small):
    more = {**small.state_dict, "model.head.weight": torch.ones(1)}
    with pytest.raises(ValueError, match="'model.head.weight'"):
        convert_network(EDMCheckpoint("VPPrecond", small.init_kwargs, more, "x"))
    narrow = {**golden("c2")[0].init_kwargs, "channel_mult": [2]}
    with pytest.raises(ValueError, match="widths"):
        convert_network(EDMCheckpoint("EDMPrecond", narrow, {}, "x"))

"""State dicts that are hostile or damaged: clear errors, and nothing runs."""

import io
import json
import pickle
import re
import subprocess
import sys
import tarfile
import zipfile
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save, save_file

from diffusers_ndc.checkpoints.state_dicts import read_state_dict


WEIGHTS = {"a": torch.arange(4.0), "b": torch.ones(2, 3)}


def archive(data=None, change=lambda data: data, compression=zipfile.ZIP_STORED) -> bytes:
    """A file of `torch.save` with another pickle inside, or with its own pickle changed."""
    buffer, result = io.BytesIO(), io.BytesIO()
    torch.save(WEIGHTS, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(result, "w", compression) as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith(".pkl"):
                content = change(content) if data is None else data
            new.writestr(name, content)
    return result.getvalue()


def legacy(data: bytes) -> bytes:
    """A file of torch before 1.6 with this pickle as its content."""
    whole = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2), pickle.dumps({"little_endian": True}, 2)]
    return b"".join([*whole, data, pickle.dumps([], 2)])


def saved(content) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def tar(name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(tarfile.TarInfo(name), io.BytesIO())
    return buffer.getvalue()


def header(entries: dict, values: bytes) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + values


def called(name: str, argument: bytes) -> bytes:
    """A pickle of protocol 2 that calls a function."""
    return b"\x80\x02c" + name.encode() + b"\n" + argument + b"\x85R."


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


EVIL = text("touch MARK")
FOUR = b"K\x04tq"  # number of values of the first storage
SHADOWED = text("items") + b"ccollections\nOrderedDict\ns"
MILLION = b"J\x40\x42\x0f\x00"
HOSTILE = {
    "os.system": (archive(called("os\nsystem", EVIL)), "names os.system, which no state dict needs"),
    "os.system, legacy": (legacy(called("os\nsystem", EVIL)), "names os.system, which no state dict needs"),
    "os.system beside weights": (
        archive(change=lambda data: data[:-1] + called("posix\nsystem", EVIL)[2:]),
        "names posix.system",
    ),
    "builtins.eval": (archive(called("builtins\neval", text("open('MARK', 'w')"))), "names builtins.eval"),
    "bytearray of 2^62 bytes": (
        archive(called("builtins\nbytearray", b"\x8a\x08" + (2**62).to_bytes(8, "little"))),
        "names builtins.bytearray",
    ),
    "torch.load": (archive(called("torch\nload", text("MARK"))), "names torch.load"),
    "torch.hub": (archive(called("torch.hub\nload", text("MARK"))), "names torch.hub.load"),
    "tensor without memory": (
        archive(called("torch._utils\n_rebuild_meta_tensor_no_storage", text("x"))),
        "names torch._utils._rebuild_meta_tensor_no_storage",
    ),
    "STACK_GLOBAL": (archive(pickle.dumps(OrderedDict, 4)), "opcode STACK_GLOBAL"),
    "INST": (archive(b"(S'touch MARK'\nios\nsystem\n."), "opcode INST"),
    "NEWOBJ": (archive(b"\x80\x02ccollections\nOrderedDict\n)\x81."), "opcode NEWOBJ"),
    "extension": (archive(b"\x80\x02\x82\x01."), "cannot be read"),
    "OBJ": (archive(b"\x80\x02(ccollections\nOrderedDict\no."), "opcode OBJ"),
    "methods replaced": (
        archive(b"\x80\x02ccollections\nOrderedDict\n)R(" + text("a") + b"]u}" + SHADOWED + b"b."),
        "got list at 'a'",
    ),
    "storage larger than its record": (
        archive(change=lambda data: data.replace(FOUR, MILLION + b"tq", 1)),
        "cannot be read",
    ),
    "tensor larger than its storage": (
        archive(change=lambda data: data.replace(b"K\x04\x85", MILLION + b"\x85", 1)),
        "cannot be read",
    ),
    "tensor of one value repeated": (saved({"a": torch.ones(1).expand(10**9)}), "tensors side by side"),
    "one storage under many names": (saved(dict.fromkeys(map(str, range(1000)), torch.ones(1000))), "side by side"),
    "compressed": (archive(compression=zipfile.ZIP_DEFLATED), "is compressed"),
    "archive without a pickle": (b"PK\x05\x06" + b"\0" * 18, "cannot be read"),
    "archive in a tar": (tar("storages"), "cannot be read"),
    "tar that begins with pickles": (tar("I1\n.I1\n.I1\n.I1\n.I1\n."), "is a tar archive"),
    "persistent id": (archive(b"\x80\x02" + text("evil") + b"Q."), "cannot be read"),
    "recursion": (archive(b"\x80\x02]q\x00h\x00a."), "got list"),
    "nothing": (b"", "cannot be read"),
    "page of a web server": (b"<!doctype html><title>404 Not Found</title>", "cannot be read"),
    "safetensors under another name": (save(WEIGHTS), "cannot be read"),
}
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HOSTILE_SAFETENSORS = {
    "header longer than the file": b"\xff" * 8 + b"{}",
    "header that is no JSON": (4).to_bytes(8, "little") + b"\x80\x02N.",
    "values beyond the end": header({"a": ENTRY}, bytes(4)),
    "two tensors in one place": header({"a": ENTRY, "b": ENTRY}, bytes(8)),
    "shape too large": header({"a": {**ENTRY, "shape": [10**9]}}, bytes(8)),
    "pickle": saved(WEIGHTS),
}

LOAD_EACH = """
import encodings.cp437, json, pathlib, sys  # zipfile reads names of archives by this codec
from diffusers_ndc.checkpoints.state_dicts import read_state_dict
found, events, genuine = {}, [], sys.argv[1]
for _ in range(2):  # all that torch and zipfile import at their first use
    read_state_dict(pathlib.Path(genuine), "x")
sys.addaudithook(lambda event, arguments: events.append((event, str(arguments[0]) if arguments else "")))
for path in sys.argv[1:]:
    del events[:]
    try:
        outcome = len(read_state_dict(pathlib.Path(path), "`path`"))
    except ValueError as error:
        outcome = str(error)
    found[path] = outcome, [list(event) for event in events]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """Outcome and audit events of reading each file, in one process; the genuine one is read at both ends."""
    folder = tmp_path_factory.mktemp("hostile")
    marker = folder / "MARK"  # what the files would make, were they run
    contents = {"genuine": (saved(WEIGHTS), ".pt")}
    contents |= {name: (data, ".pt") for name, (data, _) in HOSTILE.items()}
    contents |= {name: (data, ".safetensors") for name, data in HOSTILE_SAFETENSORS.items()}
    contents["genuine again"] = contents["genuine"]
    paths = {}
    for number, (name, (data, suffix)) in enumerate(contents.items()):
        paths[name] = folder / f"{number}{suffix}"
        paths[name].write_bytes(data)
    before = sorted(folder.iterdir())
    command = [sys.executable, "-c", LOAD_EACH, *map(str, paths.values())]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert sorted(folder.iterdir()) == before and not marker.exists()
    found = json.loads(result.stdout)
    return {name: (path, *found[str(path)]) for name, path in paths.items()}


@pytest.mark.parametrize("name", [*HOSTILE, *HOSTILE_SAFETENSORS])
def test_hostile_files_are_refused_and_nothing_runs(name, audited):
    """In the audit of the interpreter nothing but the file is opened; no code is compiled, no process started."""
    path, outcome, events = audited[name]
    assert isinstance(outcome, str) and re.search(HOSTILE.get(name, ("", "cannot be read"))[1], outcome), outcome
    assert outcome.startswith("`path` must ") and "weights_only" not in outcome and len(outcome) < 500
    assert {event for event, _ in events} <= {"open"} and {target for _, target in events} <= {str(path)}, events


def test_genuine_files_are_read_after_all_of_them(audited):
    assert audited["genuine"][1] == audited["genuine again"][1] == len(WEIGHTS)


@pytest.mark.parametrize("suffix, write", [(".pt", torch.save), (".safetensors", save_file)])
def test_cut_files_are_refused(suffix, write, tmp_path):
    path = tmp_path / f"file{suffix}"
    write(WEIGHTS, path)
    whole = path.read_bytes()
    for kept in (1, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match="`path` must be a state dict, got a file that cannot be read"):
            read_state_dict(path, "`path`")
    path.write_bytes(whole)
    assert all(torch.equal(read_state_dict(path, "x")[name], weight) for name, weight in WEIGHTS.items())

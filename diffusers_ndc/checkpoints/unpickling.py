"""Read a pickled EDM network without running anything in the file.

The published files are pickles that contain the source text of their classes, and an ordinary load runs it. Here, no
name in a file leads to an import: each of the few names that such a file needs stands for a function of this module,
and every other name is an error. What those functions return is a plain value or inert: it cannot be called, and the
pickle cannot set its state. Memo indices far beyond the number of values, strides that make a large tensor of a small
storage, and sets and bytes that are copied again and again raise an error before they take memory.
"""

import math
import pickle
import struct
from reprlib import repr  # shortens what a file holds, which may be endless
from typing import Any, BinaryIO

import torch

from .storages import Inert, SparingUnpickler, Storage, rebuild_storage


class Function(Inert):
    """A function that a pickle may call."""

    __slots__ = ("function",)

    def __init__(self, function):
        self.function = function

    def __call__(self, *args):
        return self.function(*args)


class Module(Inert):
    """A pickled network or a part of one: the name of its class and its `__dict__`."""

    __slots__ = ("class_name", "state")

    def __init__(self, class_name: str, state: dict):
        self.class_name = class_name
        self.state = state


class ModuleDict(Module):
    """A `torch.nn.ModuleDict`, which is pickled in the ordinary way: made empty, then given its `__dict__`."""

    __slots__ = ()

    def __init__(self):
        super().__init__("ModuleDict", {})

    def __new__(cls):
        module = super().__new__(cls)
        ModuleDict.__init__(module)
        return module

    def __setstate__(self, state):
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("sets the state of a module to something other than a dictionary")
        self.state = state


class Tensor(Inert):
    """A pickled tensor whose values lie within its storage, as `_rebuild_tensor` checks."""

    __slots__ = ("value",)

    def __init__(self, value: torch.Tensor):
        self.value = value


class NumberType(Inert):
    """The numpy dtype of a pickled number: its format for `struct`. Its state contains the byte order."""

    __slots__ = ("format",)

    def __init__(self, format: str):
        self.format = format

    def __setstate__(self, state):
        order = "|" if struct.calcsize(self.format) == 1 else "<"
        if not isinstance(state, tuple) or len(state) < 2 or state[1] != order:
            raise pickle.UnpicklingError("has a number that is not little-endian")


NUMBER_FORMATS = {
    "b1": "<?",
    "i1": "<b",
    "i2": "<h",
    "i4": "<i",
    "i8": "<q",
    "u1": "<B",
    "u2": "<H",
    "u4": "<I",
    "u8": "<Q",
    "f2": "<e",
    "f4": "<f",
    "f8": "<d",
}
"""The numpy types of numbers, and their formats for `struct`."""


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: object) -> Tensor:
    if not _lies_within(storage, offset, size, stride):
        raise pickle.UnpicklingError(f"has a tensor of the shape {repr(tuple(size))} outside of its storage")
    return Tensor(torch.from_numpy(storage.values).as_strided(size, stride, offset))


def _lies_within(storage: Any, offset: Any, size: Any, stride: Any) -> bool:
    """Whether a strided tensor takes its values from the storage alone, and has no more values than the storage."""
    numbers = (offset, *size, *stride)
    if not isinstance(storage, Storage) or len(size) != len(stride):
        return False
    if any(type(number) is not int or number < 0 for number in numbers):
        return False
    numel = math.prod(size)
    if numel == 0:
        return True
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    # With strides of 0, a tensor could have far more values than its storage.
    return numel <= len(storage.values) and last < len(storage.values)


def _rebuild_parameter(data: Any, *_: object) -> Tensor:
    if not isinstance(data, Tensor):
        raise pickle.UnpicklingError("has a parameter that is not a tensor")
    return data


def _rebuild_module(meta: Any) -> Module:
    kind, version = meta["type"], meta["version"]
    if (kind, version) != ("class", 6):
        raise pickle.UnpicklingError(f"has an object of type {repr(kind)}, version {repr(version)}")
    if not isinstance(meta["class_name"], str) or not isinstance(meta["state"], dict):
        raise pickle.UnpicklingError("has an object without a class name or without a state")
    return Module(meta["class_name"], meta["state"])


def _rebuild_number_type(code: Any, *_: object) -> NumberType:
    if type(code) is not str or code not in NUMBER_FORMATS:  # the hash of nested tuples could take forever
        raise pickle.UnpicklingError(f"has a number of the type {repr(code)}")
    return NumberType(NUMBER_FORMATS[code])


def _rebuild_number(dtype: Any, raw: Any) -> bool | int | float:
    if not isinstance(dtype, NumberType):
        raise pickle.UnpicklingError("has a number without a type")
    if type(raw) is not bytes:
        raise pickle.UnpicklingError("has a number without bytes")
    size = struct.calcsize(dtype.format)
    if len(raw) != size:
        raise pickle.UnpicklingError(f"has a number of {len(raw)} bytes, which needs {size}")
    return struct.unpack(dtype.format, raw)[0]


OBJECT = Inert()
"""Stands for the class `object`, the base of a `ModuleDict` in protocols 0 and 1."""


def _reconstruct(cls: Any, base: Any, state: Any) -> ModuleDict:
    """What protocols 0 and 1 call to make an object without its `__dict__`."""
    if cls is not ModuleDict or base is not OBJECT or state is not None:
        raise pickle.UnpicklingError("reconstructs something other than an empty ModuleDict")
    return ModuleDict()


GLOBALS = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): Function(_rebuild_module),
    ("torch.nn.modules.container", "ModuleDict"): ModuleDict,
    ("collections", "OrderedDict"): dict,  # a pickle cannot set the state of a built-in type
    ("torch._utils", "_rebuild_parameter"): Function(_rebuild_parameter),
    ("torch._utils", "_rebuild_tensor_v2"): Function(_rebuild_tensor),
    ("torch.storage", "_load_from_bytes"): Function(rebuild_storage),
    ("numpy", "dtype"): Function(_rebuild_number_type),
    ("numpy.core.multiarray", "scalar"): Function(_rebuild_number),
    ("numpy._core.multiarray", "scalar"): Function(_rebuild_number),
    ("copyreg", "_reconstructor"): Function(_reconstruct),
    ("copy_reg", "_reconstructor"): Function(_reconstruct),
    ("builtins", "object"): OBJECT,
    ("__builtin__", "object"): OBJECT,
}
"""Names that a pickle may contain, and what they stand for here. `EDMUnpickler` adds sets and bytes.

Protocols 0 to 2 use Python 2's names of modules: `__builtin__`, `copy_reg`.
"""

PLAIN = (type(None), bool, int, float, str)
"""Types of the arguments of a network, of the values in those arguments that are lists, and of the values of a set."""


class EDMUnpickler(SparingUnpickler):
    """An unpickler of EDM networks that never imports anything.

    Protocols 0 to 3 make a set of a list, and protocols 0 to 2 make bytes of a text. A pickler writes each list and
    text once, but a hostile file could have one of them copied again and again: all these sets and bytes together
    may hold at most as many values as the pickle has bytes.
    """

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self.copied = 0

    def find_class(self, module, name):
        if (module, name) in (("builtins", "set"), ("__builtin__", "set")):
            return Function(self._rebuild_set)
        if (module, name) == ("_codecs", "encode"):
            return Function(self._rebuild_bytes)
        if (module, name) not in GLOBALS:
            raise pickle.UnpicklingError(f"names {module}.{name}, which no EDM network needs")
        return GLOBALS[module, name]

    def persistent_load(self, pid):
        raise pickle.UnpicklingError("has a persistent id outside of a storage")

    def _rebuild_set(self, values: Any) -> set:
        if type(values) is not list or not all(type(value) in PLAIN for value in values):
            raise pickle.UnpicklingError("has a set of something other than a list of numbers and strings")
        self._check_copied(len(values))
        return set(values)

    def _rebuild_bytes(self, text: Any, codec: Any) -> bytes:
        if type(text) is not str or codec != "latin1":
            raise pickle.UnpicklingError("has bytes of something other than a text in latin1")
        self._check_copied(len(text))
        return text.encode("latin1")

    def _check_copied(self, count: int) -> None:
        self.copied += count
        if self.copied > self.size:
            raise pickle.UnpicklingError(f"has sets and bytes of more values than its own {self.size} bytes")


KINDS = ("_parameters", "_buffers", "_modules")
"""Dictionaries of a module's `__dict__` that hold its contents by name."""


def _parts(value: Any) -> list | tuple:
    return value if type(value) in (list, tuple) else [value]


def state_dict(module: Module, prefix: str = "") -> dict[str, torch.Tensor]:
    """The state dict of a pickled network.

    Args:
        module: The network, or a part of it.
        prefix: Prefix of the names, which ends in a dot.

    Raises:
        pickle.UnpicklingError: A part is not a module or a tensor, or its name is not a string.
    """
    tensors = {}
    if any(type(name) is not str for kind in KINDS for name in module.state[kind]):
        raise pickle.UnpicklingError(f"has a part of {repr(prefix)} whose name is not a string")
    for kind in ("_parameters", "_buffers"):
        for name, tensor in module.state[kind].items():
            if tensor is None or (kind == "_buffers" and name in module.state["_non_persistent_buffers_set"]):
                continue
            if not isinstance(tensor, Tensor):
                raise pickle.UnpicklingError(f"has something other than a tensor at {prefix}{name}")
            tensors[prefix + name] = tensor.value
    for name, part in module.state["_modules"].items():
        if not isinstance(part, Module | None):
            raise pickle.UnpicklingError(f"has something other than a module at {prefix}{name}")
        if part is not None:
            tensors |= state_dict(part, f"{prefix}{name}.")
    return tensors


def read_pickled_network(file: BinaryIO) -> tuple[str, dict, str, dict[str, torch.Tensor]]:
    """Read the network `ema` of a pickle.

    Args:
        file: A file, open for reading bytes.

    Returns:
        Name of its class, keyword arguments of its constructor, name of the class of the network inside, state dict.

    Raises:
        pickle.UnpicklingError: The file is not a pickle of such a network, or names what no such network needs.
    """
    try:
        content = EDMUnpickler(file).load()
        network = content.get("ema") if isinstance(content, dict) else None
        if not isinstance(network, Module):
            keys = repr(list(content)) if isinstance(content, dict) else type(content).__name__
            raise pickle.UnpicklingError(f"has no network under the key 'ema', but {keys}")
        inner, arguments = network.state["_modules"].get("model"), network.state["_init_kwargs"]
        if network.state["_init_args"] or not isinstance(arguments, dict):
            raise pickle.UnpicklingError(f"has a {network.class_name} whose arguments have no names")
        for name, value in arguments.items():
            if type(name) is not str or not all(type(part) in PLAIN for part in _parts(value)):
                raise pickle.UnpicklingError(
                    f"has the argument {repr(name)} with values other than numbers and strings"
                )
        inner_class = inner.class_name if isinstance(inner, Module) else "none"
        return network.class_name, arguments, inner_class, state_dict(network)
    except pickle.UnpicklingError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        MemoryError,
        RecursionError,
        RuntimeError,
        TypeError,
        ValueError,
        struct.error,
    ) as error:
        raise pickle.UnpicklingError(f"is not a pickle of an EDM network ({type(error).__name__}: {error})") from error

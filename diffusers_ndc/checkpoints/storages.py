"""Storages of pickled tensors, read without running anything in the file; see `unpickling`."""

import io
import pickle
import pickletools
import struct
from reprlib import repr  # shortens what a file holds, which may be endless
from typing import Any, BinaryIO

import numpy as np


class Inert:
    """A value that a pickle may pass around but not change."""

    __slots__ = ()

    def __setstate__(self, state):
        raise pickle.UnpicklingError(f"sets the state of a {type(self).__name__.lower()}")


class Storage(Inert):
    """The values of a tensor, flat."""

    __slots__ = ("values",)

    def __init__(self, values: np.ndarray):
        self.values = values


class StorageKey(Inert):
    """What the pickle of a storage states about the values that follow it."""

    __slots__ = ("dtype", "key", "numel")

    def __init__(self, dtype: np.dtype, key: str, numel: int):
        self.dtype, self.key, self.numel = dtype, key, numel


STORAGE_TYPES: dict[str, np.dtype] = {
    "HalfStorage": np.dtype("<f2"),
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
}

STORAGE_MAGIC, STORAGE_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class SparingUnpickler(pickle.Unpickler):
    """An unpickler that raises if a memo index exceeds the number of opcodes before it.

    An ordinary unpickler would reserve memory up to that index.
    """

    def __init__(self, file: BinaryIO):
        start = file.tell()
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and (argument or 0) > count:
                raise pickle.UnpicklingError(f"has the memo index {argument} after {count} opcodes")
        self.size = file.tell() - start
        file.seek(start)
        super().__init__(file)


class StorageUnpickler(SparingUnpickler):
    """Unpickler of the pickles inside a storage: numbers, strings, a dictionary and one persistent id."""

    def find_class(self, module, name):
        if module != "torch" or name not in STORAGE_TYPES:
            raise pickle.UnpicklingError(f"names {module}.{name} in a storage")
        return STORAGE_TYPES[name].str

    def persistent_load(self, pid):
        if not isinstance(pid, tuple) or len(pid) < 5:
            raise pickle.UnpicklingError(f"has the persistent id {repr(pid)} in a storage")
        kind, dtype, key, _, numel = pid[:5]
        if kind != "storage" or dtype not in [d.str for d in STORAGE_TYPES.values()] or type(numel) is not int:
            raise pickle.UnpicklingError(f"has the persistent id {repr(pid)} in a storage")
        return StorageKey(np.dtype(dtype), key, numel)


def rebuild_storage(data: Any) -> Storage:
    """Read the legacy format of `torch.save`: five small pickles, the number of values, the values."""
    file = io.BytesIO(data)
    magic, protocol, system, storage, keys = (StorageUnpickler(file).load() for _ in range(5))
    if magic != STORAGE_MAGIC or protocol != STORAGE_PROTOCOL or system.get("little_endian") is not True:
        raise pickle.UnpicklingError("has a storage of an unknown format")
    if not isinstance(storage, StorageKey) or keys != [storage.key]:
        raise pickle.UnpicklingError("has a storage without values")
    (numel,) = struct.unpack("<q", file.read(8))
    raw = file.read()
    if numel != storage.numel or len(raw) != numel * storage.dtype.itemsize:
        raise pickle.UnpicklingError(f"has a storage of {len(raw)} bytes for {storage.numel} values")
    return Storage(np.frombuffer(raw, storage.dtype).astype(storage.dtype.newbyteorder("=")))  # a writable copy

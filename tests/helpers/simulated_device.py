"""A device that computes on the CPU and counts how often the CPU would have to wait for it, if it were an accelerator.

It uses torch's experimental way to write a backend in Python (torch 2.10 or newer). To register one changes the whole
process: import this in a process of its own.
"""

import torch
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

from diffusers_ndc.common import transfer


NAME = "simulated"

waits: list[str] = []
"""Names of the operations for which the CPU would have waited."""


class Module(backend_registration._DummyBackendModule):
    """What torch looks up as `torch.simulated`."""

    def get_amp_supported_dtype(self):
        return [torch.float16, torch.bfloat16]


class Simulated(torch.Tensor):
    """A tensor on the simulated device.

    Args:
        host: Its values.
    """

    @staticmethod
    def __new__(cls, host):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=NAME,
        )

    def __init__(self, host):
        self.host = host

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})

    def tolist(self):
        return self.cpu().tolist()


def _run(function, args, kwargs):
    """Run an operation on the CPU."""
    decomposed = function.decompose(*args, **kwargs)
    if decomposed is not NotImplemented:
        return decomposed
    wrappers = {}

    def unwrap(value):
        if isinstance(value, Simulated):
            wrappers[id(value.host)] = value
            return value.host
        if isinstance(value, torch.device) and value.type == NAME:
            return torch.device("cpu")
        return value

    def wrap(value):
        if not isinstance(value, torch.Tensor):
            return value
        changed_in_place = id(value) in wrappers
        return wrappers[id(value)] if changed_in_place else Simulated(value)

    values = function(*tree_map(unwrap, args), **tree_map(unwrap, kwargs))
    name = function._schema.name
    to_host = name == "aten::_to_copy" and torch.device(kwargs.get("device") or NAME).type == "cpu"
    if to_host or name in ("aten::_local_scalar_dense", "aten::nonzero"):
        waits.append(name)
    if name in ("aten::copy_", "aten::_to_copy") and not to_host:
        between = len({isinstance(tensor, Simulated) for tensor in tree_leaves(args)[:2]}) == 2
        asynchronous = kwargs.get("non_blocking") or args[2:3] == (True,)
        if between and not asynchronous:
            waits.append(name)
    return values if to_host else tree_map(wrap, values)


def to_simulated(module):
    """Move the weights of a module to the simulated device."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = Simulated(tensor.detach())
    return module


backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Module())
library = torch.library.Library("_", "IMPL")
library.fallback(lambda function, *args, **kwargs: _run(function, args, kwargs), "PrivateUse1")
transfer.PINNED = (*transfer.PINNED, NAME)
torch.Tensor.pin_memory = lambda self: self  # which needs a real accelerator

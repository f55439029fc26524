"""Files of the format in which networks of EDM are published, written here, with any weights.

The pickles of EDM hold the source text of their classes, which must not be run; here it is one line that would end the
program.
"""

import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

from diffusers_ndc.checkpoints import EDMCheckpoint


BUFFERS = ("resample_filter", "freqs", "u")


class Persistent:
    """An object that a published pickle holds as class name, source text and state."""

    def __init__(self, class_name, state, source, version=6):
        self.meta = {
            "type": "class",
            "version": version,
            "module_src": source,
            "class_name": class_name,
            "state": state,
        }

    def __reduce__(self):
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


def module_state(tensors: dict, source: str, classes: dict, prefix: str = "") -> dict:
    """The `__dict__` of a module: its own tensors, and persistent objects for its parts."""
    own = {key: value for key, value in tensors.items() if "." not in key}
    parts = {}
    for key in tensors:
        if "." in key:
            parts.setdefault(key.partition(".")[0], {})[key.partition(".")[2]] = tensors[key]
    modules = {}
    for name, inside in parts.items():
        if prefix == "model." and name in ("enc", "dec"):
            modules[name] = torch.nn.ModuleDict()
            modules[name]._modules.update(module_state(inside, source, classes, f"{prefix}{name}.")["_modules"])
        else:
            state = module_state(inside, source, classes, f"{prefix}{name}.")
            modules[name] = Persistent(classes.get(prefix + name, "UNetBlock"), state, source)
    return {
        "training": False,
        "_parameters": {k: torch.nn.Parameter(v) for k, v in own.items() if k not in BUFFERS} | {"none": None},
        "_buffers": {k: v for k, v in own.items() if k in BUFFERS} | {"scratch": torch.ones(1)},
        "_non_persistent_buffers_set": {"scratch"},
        "_backward_hooks": OrderedDict(),
        "_forward_hooks": OrderedDict(),
        "_modules": modules,
        "skip_scale": np.sqrt(0.5),
    }


def save_published(
    path, checkpoint: EDMCheckpoint, source="raise SystemExit('run')", model_class=None, protocol=4, **outer
):
    """Write a checkpoint in the published format, a pickle whose classes are source text."""
    classes = {"model": model_class or checkpoint.model_type}
    state = module_state({k: v.float() for k, v in checkpoint.state_dict.items()}, source, classes)
    state |= {"_init_args": (), "_init_kwargs": checkpoint.init_kwargs, "sigma_data": 0.5}
    content = {
        "ema": Persistent(checkpoint.class_name, state, source),
        "loss_fn": Persistent("EDMLoss", {"P_mean": -1.2}, source),
        "augment_pipe": None,
        "dataset_kwargs": {"class_name": "training.dataset.ImageFolderDataset", "use_labels": True},
    }
    stand_in = types.ModuleType("torch_utils.persistence")
    exec("def _reconstruct_persistent_obj(meta): raise NotImplementedError", stand_in.__dict__)
    sys.modules["torch_utils"], sys.modules["torch_utils.persistence"] = types.ModuleType("torch_utils"), stand_in
    try:
        Path(path).write_bytes(pickle.dumps(content | outer, protocol))
    finally:
        del sys.modules["torch_utils"], sys.modules["torch_utils.persistence"]
    return path

"""Hash of the configurations of a base classifier: what its weights do not tell, such as heads or a noise schedule."""

import hashlib
import inspect
import json
from collections.abc import Iterator

from diffusers import ConfigMixin
from torch import nn
from transformers import PreTrainedModel


NO_FUNCTION = {"architectures", "dtype", "id2label", "label2id", "torch_dtype", "transformers_version"}
"""What the configuration of a model of transformers says besides the function that it computes."""

SCHEDULERS = ("scheduler", "unconditional_scheduler")
"""Attributes of a denoiser that are no modules."""


def config_hash(base: nn.Module) -> str:
    """Hash of the configurations of a classifier's networks and schedulers.

    Values that are their class's defaults are left out, so that an option that a later version of a library adds
    changes nothing.

    Args:
        base: The classifier.
    """
    entries = [[type(part).__name__, configured] for part, configured in _configurations(base)]
    return hashlib.sha256(json.dumps(entries, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _configurations(base: nn.Module) -> Iterator[tuple[object, dict]]:
    """Each part with a configuration, and the values of it that are not defaults."""
    for module in base.modules():
        if isinstance(module, PreTrainedModel):
            values = module.config.to_diff_dict()
            yield module, {name: value for name, value in values.items() if name[0] != "_" and name not in NO_FUNCTION}
        for part in (module, *(getattr(module, name, None) for name in SCHEDULERS)):
            if isinstance(part, ConfigMixin):
                yield part, _changed(part)


def _changed(part: ConfigMixin) -> dict:
    """The values of a configuration of diffusers that are not the defaults."""
    parameters = inspect.signature(type(part).__init__).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    values = {name: value for name, value in part.config.items() if not name.startswith("_")}
    return {name: value for name, value in values.items() if name not in defaults or value != defaults[name]}

"""Names of a package that are imported when they are first asked for."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_exports(package: str, modules: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], Any], list[str]]:
    """The `__getattr__` and `__all__` of a package whose names are imported when they are first asked for.

    Certificates can so be checked where torch is not installed, and `import diffusers_ndc` takes no time.

    Args:
        package: `__name__` of the package.
        modules: Public names by the module that has them, relative to the package.
    """
    module_of = {name: module for module, names in modules.items() for name in names}

    def __getattr__(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f".{module_of[name]}", package), name)

    return __getattr__, sorted(module_of)

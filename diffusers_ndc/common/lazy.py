"""Names of a package that are imported when they are first asked for."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from .extras import install_command


def lazy_exports(
    package: str, modules: Mapping[str, Sequence[str]], extra: str | None = None
) -> tuple[Callable[[str], Any], list[str]]:
    """The `__getattr__` and `__all__` of a package whose names are imported when they are first asked for.

    Certificates can so be checked where torch is not installed, and `import diffusers_ndc` takes no time.

    Args:
        package: `__name__` of the package.
        modules: Public names by the module that has them, relative to the package.
        extra: Extra of the installation that some of them need; the message about a missing package names it.
    """
    module_of = {name: module for module, names in modules.items() for name in names}

    def __getattr__(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            return getattr(import_module(f".{module_of[name]}", package), name)
        except ModuleNotFoundError as error:
            if extra is None:
                raise
            raise ModuleNotFoundError(
                f"`{package}.{name}` needs the package {error.name}, which is not installed. Install it with "
                f"`{install_command(extra)}`.",
                name=error.name,
            ) from error

    return __getattr__, sorted(module_of)

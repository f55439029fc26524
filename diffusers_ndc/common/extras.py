"""Packages that only a part of the work needs: the extras of the installation. Free of torch."""

from importlib.util import find_spec


REPOSITORY = "git+https://github.com/diffusers-ndc/diffusers-ndc"

EXTRAS = {
    "eval": {"datasets": "datasets", "jsonargparse": "jsonargparse", "matplotlib": "matplotlib", "yaml": "pyyaml"},
    "train": {"datasets": "datasets", "jsonargparse": "jsonargparse", "yaml": "pyyaml"},
    "space": {"gradio": "gradio", "yaml": "pyyaml"},
}
"""Modules of each extra, with the packages that have them."""


def install_command(extra: str | None = None) -> str:
    """What to type to install this package, with an extra if one is given."""
    name = "diffusers-ndc" if extra is None else f"diffusers-ndc[{extra}]"
    return f'pip install "{name} @ {REPOSITORY}"'


def require(command: str, extra: str) -> None:
    """Raise unless all packages of an extra are installed. Nothing is imported.

    Args:
        command: What needs them, for the message.
        extra: Name of the extra.

    Raises:
        RuntimeError: One of them is missing.
    """
    missing = [package for module, package in EXTRAS[extra].items() if find_spec(module) is None]
    if missing:
        raise RuntimeError(
            f"`{command}` needs packages that are not installed: {', '.join(missing)}. Install them with "
            f"`{install_command(extra)}`."
        )

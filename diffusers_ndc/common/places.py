"""Places of models and data sets: folders, or ids on the Hub. Free of torch."""

from pathlib import Path

from .checks import check_kind


def check_place(option: str, name: str) -> None:
    """Raise unless a name is a folder or may be a Hub id.

    Without this check a mistyped folder would be looked for on the Hub, again and again. `a/b` may be a Hub id.

    Args:
        option: Option that names the place, for the message.
        name: The name.

    Raises:
        TypeError: It is not a text.
        ValueError: It can only be a folder, and there is none.
    """
    check_kind(option, name, str)
    cannot_be_hub_id = name.startswith((".", "/", "~")) or name.count("/") > 1
    if cannot_be_hub_id and not Path(name).is_dir():
        raise ValueError(f"`{option}` must be an existing folder or a Hub id, got {name}, which is no folder.")

"""A quick look whether the Hub has a model: loading one that it lacks tries again and again. Free of torch."""

from pathlib import Path
from threading import Thread


SECONDS = 4.0
"""Time that the Hub has for its answer. A name server that does not answer is waited for no longer."""


def check_on_hub(option: str, place: str, filename: str = "model_index.json") -> None:
    """Raise unless a model is a folder, in the cache, or on the Hub, which is asked once.

    Args:
        option: Option that names the model, for the message.
        place: The folder or Hub id.
        filename: A file that each such model has.

    Raises:
        ValueError: There is no such model, or the Hub cannot be reached.
    """
    if Path(place).is_dir():
        return

    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        if isinstance(try_to_load_from_cache(place, filename), str):
            return
        if constants.HF_HUB_OFFLINE:
            problem: str | None = "it is not in the cache, and HF_HUB_OFFLINE is set"
        else:
            problem = _ask(place, filename)
    except HFValidationError:
        problem = "it cannot be a Hub id"
    if problem is not None:
        raise ValueError(
            f"`{option}` must be an existing folder or a Hub id, got {place}, which is no folder; {problem}."
        )


def _ask(place: str, filename: str) -> str | None:
    """What is wrong with a model on the Hub, `None` if its file is there."""
    problems: list[str | None] = []
    thread = Thread(target=lambda: problems.append(_head(place, filename)), daemon=True)
    thread.start()
    thread.join(SECONDS + 1)
    return problems[0] if problems else "the Hub does not answer"


def _head(place: str, filename: str) -> str | None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HTTPError, RepositoryNotFoundError

    try:
        get_hf_file_metadata(hf_hub_url(place, filename), timeout=SECONDS)
    except GatedRepoError:
        return "its repository on the Hub is gated, and asks for a token with access (`hf auth login`)"
    except RepositoryNotFoundError:
        return "the Hub has no such repository, or a private one that asks for a token (`hf auth login`)"
    except EntryNotFoundError:
        return f"its repository on the Hub has no {filename}"
    except (HTTPError, OSError) as error:
        return f"the Hub cannot be reached ({' '.join(str(error).split()) or type(error).__name__})"
    return None

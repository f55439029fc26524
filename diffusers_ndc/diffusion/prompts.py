"""Classes that are described by prompts: checks of the prompts, and their embeddings."""

from collections.abc import Mapping, Sequence

import torch
from transformers import CLIPTextModel, CLIPTokenizer

from ..common.checks import check_kind


EXPECTED = (
    "a prompt, or a list of prompts whose embeddings are averaged, for each of at least two classes: a dictionary by "
    "class index from 0, or a list in the order of the classes"
)

BATCH = 256
"""Prompts per call of the text encoder."""


def read_prompts(prompts: Mapping | Sequence) -> dict[int, list[str]]:
    """Check prompts and arrange them by class index.

    Args:
        prompts: For each of at least two classes a prompt or a list of prompts: a dictionary by class index (or by its
            string, as in JSON), or a list in the order of the classes.

    Returns:
        The list of prompts of each class, by class index in ascending order.

    Raises:
        ValueError: `prompts` is something else, or two classes have the same prompts.

    Example:
        >>> read_prompts({"0": "a cat", "1": ["a dog", "one dog"]})
        {0: ['a cat'], 1: ['a dog', 'one dog']}
    """
    try:
        pairs = enumerate(prompts) if isinstance(prompts, (list, tuple)) else dict(prompts).items()
        by_class = {int(label): [texts] if isinstance(texts, str) else list(texts) for label, texts in pairs}
    except (ArithmeticError, TypeError, ValueError):
        raise ValueError(f"`prompts` must be {EXPECTED}, got {prompts!r}.") from None
    complete = len(by_class) >= 2 and sorted(by_class) == list(range(len(by_class)))
    if not complete or not all(_are_prompts(texts) for texts in by_class.values()):
        raise ValueError(f"`prompts` must be {EXPECTED}, got {prompts!r}.")
    by_class = {label: by_class[label] for label in sorted(by_class)}
    seen: dict[tuple[str, ...], int] = {}
    for label, texts in by_class.items():
        if tuple(texts) in seen:
            raise ValueError(
                f"`prompts` must differ between classes, got {texts} for the classes {seen[tuple(texts)]} and {label}."
            )
        seen[tuple(texts)] = label
    return by_class


def _are_prompts(texts: list) -> bool:
    return len(texts) > 0 and all(isinstance(text, str) and text.strip() for text in texts)


def check_length(prompts: Mapping[int, Sequence[str]], tokenizer: CLIPTokenizer) -> None:
    """Raise if the text encoder would not see the end of a prompt.

    Args:
        prompts: The prompts of each class, as `read_prompts` returns them.
        tokenizer: Tokenizer of the text encoder.

    Raises:
        ValueError: A prompt has more tokens than the text encoder takes.
    """
    texts = [text for texts in prompts.values() for text in texts]
    most = tokenizer.model_max_length
    for text, tokens in zip(texts, tokenizer(texts, truncation=False).input_ids, strict=True):
        if len(tokens) > most:
            raise ValueError(
                f"`prompts` must have at most {most} tokens each, got {text!r} with {len(tokens)} tokens."
            )


@torch.no_grad()
def embed_prompts(
    prompts: Mapping | Sequence,
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Embed the prompts of each class, and the empty prompt for "no class", as in training.

    The result serves as `prompt_embeddings` of a `Denoiser`. Prompts are padded to the encoder's length as in Stable
    Diffusion. If a class has several prompts, their embeddings are averaged token by token.

    Args:
        prompts: For each of K classes (at least two) a prompt or a list of prompts: a dictionary by class index, or a
            list in the order of the classes.
        tokenizer: Tokenizer of the text encoder.
        text_encoder: The text encoder.
        device: Device on which the text encoder runs. Default: the device of its weights. Needed only if offloading
            hooks will move the weights.

    Returns:
        `encoder_hidden_states` of the classes, shape `(K + 1, tokens, channels)`, in the text encoder's dtype. The
        last row is that of the empty prompt.

    Raises:
        TypeError: `tokenizer` or `text_encoder` has the wrong type.
        ValueError: `prompts` is something else, two classes have the same prompts, or a prompt is too long.
    """
    check_kind("tokenizer", tokenizer, CLIPTokenizer)
    check_kind("text_encoder", text_encoder, CLIPTextModel)
    prompts = read_prompts(prompts)
    check_length(prompts, tokenizer)
    groups = [*prompts.values(), [""]]  # the last one is "no class"
    texts = [text for group in groups for text in group]
    tokens = tokenizer(texts, padding="max_length", return_tensors="pt", max_length=tokenizer.model_max_length)
    device = text_encoder.device if device is None else device
    use_mask = getattr(text_encoder.config, "use_attention_mask", False)  # most configurations lack the setting
    embedded = []
    for ids, mask in zip(tokens.input_ids.split(BATCH), tokens.attention_mask.split(BATCH), strict=True):
        attention_mask = mask.to(device) if use_mask else None
        embedded.append(text_encoder(ids.to(device), attention_mask=attention_mask)[0])
    by_class = torch.cat(embedded).split([len(group) for group in groups])
    return torch.stack([embeddings.mean(dim=0) for embeddings in by_class])

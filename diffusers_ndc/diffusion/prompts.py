"""Classes that are given by prompts: their check, and their embeddings."""

from collections.abc import Mapping, Sequence

import torch
from transformers import CLIPTextModel, CLIPTokenizer

from ..common.checks import check_kind


ACCEPTED = (
    "for each of at least two classes a prompt, or a list of prompts whose embeddings are averaged: a dictionary by "
    "class index from 0, or a list in the classes' order"
)

BATCH = 256
"""Prompts that the text encoder is shown at a time."""


def read_prompts(prompts: Mapping | Sequence) -> dict[int, list[str]]:
    """Prompts by class index, checked.

    Args:
        prompts: For each of at least two classes a prompt or a list of them, in a dictionary by class index (also as
            JSON has it, with strings for keys) or a list.

    Raises:
        ValueError: They are something else, or two classes have the same ones.
    """
    try:
        by_class = dict(enumerate(prompts)) if isinstance(prompts, (list, tuple)) else dict(prompts)
        by_class = {
            int(label): [texts] if isinstance(texts, str) else list(texts) for label, texts in by_class.items()
        }
        texts = [text for texts in by_class.values() for text in texts]
        usable = all(by_class.values()) and all(isinstance(text, str) and text.strip() for text in texts)
    except (ArithmeticError, TypeError, ValueError):
        usable = False
    if not usable or len(by_class) < 2 or sorted(by_class) != list(range(len(by_class))):
        raise ValueError(f"`prompts` is {prompts!r}; accepted are, {ACCEPTED}.")
    classes: dict[tuple[str, ...], int] = {}
    for label, texts in sorted(by_class.items()):
        twin = classes.setdefault(tuple(texts), label)
        if twin != label:
            raise ValueError(
                f"`prompts` are the same for the classes {twin} and {label}, {texts}; accepted are others."
            )
    return {label: by_class[label] for label in sorted(by_class)}


def check_length(prompts: Mapping[int, Sequence[str]], tokenizer: CLIPTokenizer) -> None:
    """Refuse prompts whose end the text encoder would not see.

    Raises:
        ValueError: A prompt has more tokens than the text encoder takes.
    """
    texts = [text for texts in prompts.values() for text in texts]
    for text, tokens in zip(texts, tokenizer(texts, truncation=False).input_ids, strict=True):
        if len(tokens) > tokenizer.model_max_length:
            raise ValueError(
                f"`prompts` has {text!r}, {len(tokens)} tokens; accepted are up to {tokenizer.model_max_length}."
            )


@torch.no_grad()
def embed_prompts(
    prompts: Mapping | Sequence,
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """What `encoder_hidden_states` is for each class, and for "no class": the empty prompt, as in training.

    Texts are padded to the encoder's length as in Stable Diffusion. Where a class has several, their embeddings are
    averaged token by token.

    Args:
        prompts: For each of K classes a prompt or a list of them, as for `read_prompts`.
        tokenizer: The text encoder's.
        text_encoder: The text encoder.
        device: Where it runs. Default: where its weights are, unless hooks (offloading) are to move them.

    Returns:
        Shape `(K + 1, tokens, channels)`, the last row being the empty prompt's, in the text encoder's dtype.

    Raises:
        TypeError: `tokenizer` or `text_encoder` is of another class.
        ValueError: `prompts` are not as described, or too long.
    """
    check_kind("tokenizer", tokenizer, CLIPTokenizer)
    check_kind("text_encoder", text_encoder, CLIPTextModel)
    prompts = read_prompts(prompts)
    check_length(prompts, tokenizer)
    groups = [*prompts.values(), [""]]
    texts = [text for group in groups for text in group]
    tokens = tokenizer(texts, padding="max_length", return_tensors="pt", max_length=tokenizer.model_max_length)
    device = text_encoder.device if device is None else device
    masked = getattr(text_encoder.config, "use_attention_mask", False)
    embedded = []
    for ids, mask in zip(tokens.input_ids.split(BATCH), tokens.attention_mask.split(BATCH), strict=True):
        mask = mask.to(device) if masked else None
        embedded.append(text_encoder(ids.to(device), attention_mask=mask)[0])
    parts = torch.cat(embedded).split([len(group) for group in groups])
    return torch.stack([part.mean(dim=0) for part in parts])

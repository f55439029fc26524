"""Figures about changed pictures: attacks on a certificate, and changes of a size."""

from collections.abc import Sequence
from html import escape

import torch

from .attacking import JUDGES, STEPS, Attempt
from .drawing import floored, picture_tag


VERDICTS = {
    "kept": ("kept", "✓ kept"),
    "abstained": ("abstained", "? abstained"),
    "fallen": ("fallen", "✗ fell"),
}
"""Class of style and words for each outcome of an attack."""


def attempts_figure(image: torch.Tensor, attempts: Sequence[Attempt], names: dict[int, str]) -> str:
    """A row for each distance: the original, the picture that the attack made of it, and what became of the class.

    Args:
        image: The certified image, shape `(C, H, W)`, pixel units.
        attempts: The attacks so far.
        names: Names of the classes.
    """
    original = picture_tag(image, "The certified picture")
    rows = []
    for attempt in attempts:
        where = "just inside the radius" if attempt.multiple == 1 else f"{attempt.multiple:g} × the radius"
        changed = picture_tag(attempt.image, f"The attacked picture, {where}")
        rows.append(
            f'<div class="attempt">{original}<span aria-hidden="true">→</span>{changed}<div><b>{where}</b><br>'
            f"l2 distance {floored(attempt.distance)}<br>{_state(attempt, names)}</div></div>"
        )
    return f'<div class="ndc">{"".join(rows)}</div>'


def _state(attempt: Attempt, names: dict[int, str]) -> str:
    """What is known about an attempt, in words."""
    made = sum(attempt.votes.values())
    votes = ", ".join(
        f"{count} for {escape(names.get(label, str(label))[:20])}"
        for label, count in sorted(attempt.votes.items(), key=lambda vote: -vote[1])[:3]
    )
    if attempt.outcome is not None:
        style, words = VERDICTS[attempt.outcome]
        if attempt.label is not None:
            words += f": {escape(names.get(attempt.label, str(attempt.label))[:20])}"
        return f'<span class="verdict {style}">{words}</span> <small>votes: {votes}</small>'
    if made:
        return f"<small>judging: {made} of {JUDGES} votes: {votes}</small>"
    return f"<small>attacking: step {attempt.step} of {STEPS}</small>"


def changes_figure(image: torch.Tensor, noisy: torch.Tensor, worst: torch.Tensor | None, norm: float) -> str:
    """The picture, and beside it a random change and the worst one that an attack found, of the same l2 norm.

    Args:
        image: The certified image, shape `(C, H, W)`, pixel units.
        noisy: The image with a random change.
        worst: The image with the change that an attack found, `None` without an attack.
        norm: l2 norm of the changes, pixel units.
    """
    shown = [
        ("original", picture_tag(image, "The certified picture")),
        ("random change", picture_tag(noisy, f"A random change of l2 norm {norm:.2f}")),
    ]
    if worst is None:
        shown.append(("worst found", '<span class="none">Try to break it first</span>'))
    else:
        shown.append(("worst found", picture_tag(worst, f"The change that an attack found, of l2 norm {norm:.2f}")))
    cells = "".join(f"<figure>{tag}<figcaption>{words}</figcaption></figure>" for words, tag in shown)
    return f'<div class="ndc"><div class="changes">{cells}</div></div>'


def size_in_words(size: float, radius: float) -> str:
    """A sentence on a change of a size that is given in certified radii."""
    norm = size * radius
    if size < 1:
        return f"l2 norm {floored(norm)}: inside the radius {floored(radius)}. No change this small alters the class."
    if size == 1:
        return f"l2 norm {floored(norm)}: the radius itself. Every smaller change is proved harmless."
    return f"l2 norm {floored(norm)}: {size:g} times the radius {floored(radius)}. Nothing is proved out here."

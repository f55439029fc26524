"""Files that visitors bring: certificates to be verified, and reports of runs to be compared with."""

import json
import math
from bisect import bisect_right
from pathlib import Path

from diffusers_ndc import Certificate


def read_json(path: str | Path):
    """The values in a JSON file.

    Raises:
        ValueError: It is none.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ValueError("The file is not JSON.") from None


def read_certificate(path: str | Path) -> Certificate:
    """The certificate in a file; one that does not follow from its votes as it is, for `verdict` to say so.

    Raises:
        ValueError: There is none, or it was altered in a way that the votes do not show.
    """
    data = read_json(path)
    try:
        return Certificate.from_dict(data)
    except ValueError:
        pass
    try:
        certificate = Certificate.from_dict({name: value for name, value in data.items() if name != "digest"})
    except (ValueError, AttributeError):
        raise ValueError("The file holds no certificate: fields are missing, unknown, or not counts.") from None
    if certificate.verify():
        raise ValueError("The file was altered: its digest is that of other values.")
    return certificate


def verdict(certificate: Certificate) -> str:
    """Whether the certificate follows from its votes, in words, with the reason."""
    if certificate.verify():
        votes = f"{certificate.counts.get(certificate.candidate, 0):,} of {certificate.n:,} votes"
        settings = f"sigma = {certificate.sigma:g}, alpha = {certificate.alpha:g}, bound: {certificate.bound}"
        if certificate.abstained:
            return f"**Valid.** It abstains, and rightly so: {votes} prove no class ({settings})."
        proved = f"Class {certificate.label} and radius {certificate.radius:.4f}"
        return f"**Valid.** {proved} follow from {votes} ({settings})."
    given = {"label": certificate.label, "radius": certificate.radius}
    votes = {name: value for name, value in certificate.to_dict().items() if name not in {*given, "digest"}}
    try:
        right = Certificate.from_counts(**votes)
        if not right.verify():
            raise ValueError
    except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError):
        return "**Not valid.** Its votes and settings do not fit together: no radius follows from them."
    proved = "no class at all" if right.abstained else f"class {right.label} within radius {right.radius:.4f}"
    shown = ", ".join(f"{name} {str(value)[:20]}" for name, value in given.items())
    return f"**Not valid.** The file says `{shown.replace('`', '')}`, but its votes prove {proved}."


def read_runs(path: str | Path) -> list[dict]:
    """The certified runs of a `report.json` that `diffusers_ndc.evaluation` wrote, each with what is used here.

    Raises:
        ValueError: There are none, or values are missing or no shares.
    """
    data = read_json(path)
    try:
        runs = [run for run in data["runs"] if run["certified"]]
        for run in runs:
            values = [run["run"]["sigma"], *(point["radius"] for point in run["certified_accuracy"])]
            radii, shares = values[1:], run["certified_accuracy"]
            if not (
                isinstance(run["name"], str)
                and radii == sorted(set(radii))
                and all(0 <= value < math.inf for value in values)
                and all(0 <= point["low"] <= point["share"] <= point["high"] <= 1 for point in shares)
                and type(run["certificates"]) is int
                and radii
            ):
                raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError("The file is no report.json of a run: it has no certified accuracy by radius.") from None
    if not runs:
        raise ValueError("The report holds no run with certificates.")
    return runs


def placed(run: dict, certificate: Certificate | None) -> str:
    """A run's certified accuracy in a table, and a certificate's radius among its radii."""
    name = "".join(letter for letter in run["name"][:40] if letter.isprintable() and letter != "`")
    lines = [f"`{name}`: {run['certificates']:,} images at sigma {run['run']['sigma']:g}", ""]
    lines += ["| radius | right and certified | 95% interval |", "| --- | --- | --- |"]
    radii, shares = [], []
    for point in run["certified_accuracy"]:
        radii.append(point["radius"])
        shares.append(f"{point['share']:.0%}")
        lines.append(f"| {radii[-1]:g} | {shares[-1]} | {point['low']:.0%} to {point['high']:.0%} |")
    lines.append("")
    if certificate is None or certificate.abstained:
        return "\n".join(lines)
    below = bisect_right(radii, certificate.radius) - 1
    if below < 0:
        where = "is smaller than all of these"
    else:
        where = f"reaches {radii[below]:g}, as {shares[below]} of these images do"
        if below + 1 < len(radii):
            where += f", and not {radii[below + 1]:g}, as {shares[below + 1]} do"
    lines.append(f"Your certificate's radius, {certificate.radius:.3f} at sigma {certificate.sigma:g}, {where}.")
    return "\n".join(lines)

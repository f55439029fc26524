"""Read the files that visitors upload: certificates to verify, and reports of runs to compare with."""

import json
from bisect import bisect_right
from pathlib import Path
from typing import Any

from ..certification.certificate import Certificate
from .drawing import floored


LARGEST = 1e9
"""Largest sigma or radius of a run that is shown: far above all that occur, and far below what figures can draw."""


def read_json(path: str | Path) -> Any:
    """The contents of a JSON file.

    Raises:
        ValueError: The file is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ValueError("The file is not JSON.") from None


def read_certificate(path: str | Path) -> Certificate:
    """The certificate in a file, also one that does not follow from its votes, which `verdict` then explains.

    Raises:
        ValueError: The file holds no certificate, or one that was altered in a way that the votes do not show.
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
        raise ValueError("The file was altered: its digest does not match its values.")
    return certificate


def verdict(certificate: Certificate) -> str:
    """Whether the certificate follows from its votes, and why, in Markdown."""
    if certificate.verify():
        votes = f"{certificate.counts.get(certificate.candidate, 0):,} of {certificate.n:,} votes"
        settings = f"sigma = {certificate.sigma:g}, alpha = {certificate.alpha:g}, bound: {certificate.bound}"
        if certificate.abstained:
            return f"**Valid.** It abstains correctly: {votes} prove no class ({settings})."
        proved = f"Class {certificate.label} and radius {certificate.radius:.4f}"
        return f"**Valid.** {proved} follow from {votes} ({settings})."
    claims = {"label": certificate.label, "radius": certificate.radius}
    rest = {name: value for name, value in certificate.to_dict().items() if name not in {*claims, "digest"}}
    try:
        recomputed = Certificate.from_counts(**rest)
        if not recomputed.verify():
            raise ValueError
    except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError):
        return "**Not valid.** Its votes and settings do not fit together: no radius follows from them."
    proved = f"class {recomputed.label} within radius {recomputed.radius:.4f}"
    if recomputed.abstained:
        proved = "no class at all"
    shown = ", ".join(f"{name} {str(value)[:20]}" for name, value in claims.items()).replace("`", "")
    return f"**Not valid.** The file says `{shown}`, but its votes prove {proved}."


def read_runs(path: str | Path) -> list[dict]:
    """The runs with certificates in a `report.json` of `diffusers_ndc.evaluation`, with the values used here checked.

    Raises:
        ValueError: The file is no report, it has no run with certificates, or values are missing or out of range.
    """
    data = read_json(path)
    try:
        runs = [run for run in data["runs"] if run["certified"]]
        for run in runs:
            check_run(run)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError("The file is no report.json of a run: it has no certified accuracy by radius.") from None
    if not runs:
        raise ValueError("The report holds no run with certificates.")
    return runs


def check_run(run: dict) -> None:
    """Raise if a value of a run is missing (KeyError), of another type (TypeError), or out of range (ValueError)."""
    points = run["certified_accuracy"]
    radii = [point["radius"] for point in points]
    in_range = (
        isinstance(run["name"], str)
        and type(run["certificates"]) is int
        and 0 <= run["run"]["sigma"] <= LARGEST
        and len(radii) > 0
        and all(0 <= radius <= LARGEST for radius in radii)
        and radii == sorted(set(radii))
        and all(0 <= point["low"] <= point["share"] <= point["high"] <= 1 for point in points)
    )
    if not in_range:
        raise ValueError


def compare_with_run(run: dict, certificate: Certificate | None) -> str:
    """A Markdown table of a run's certified accuracy, and where a certificate's radius lies among its radii."""
    name = "".join(letter for letter in run["name"][:40] if letter.isprintable() and letter != "`")
    lines = [f"`{name}`: {run['certificates']:,} images at sigma {run['run']['sigma']:g}", ""]
    lines += ["| radius | correct and certified | 95% interval |", "| --- | --- | --- |"]
    radii, shares = [], []
    for point in run["certified_accuracy"]:
        radii.append(point["radius"])
        shares.append(f"{point['share']:.0%}")
        lines.append(f"| {radii[-1]:g} | {shares[-1]} | {point['low']:.0%} to {point['high']:.0%} |")
    lines.append("")
    if certificate is None or certificate.abstained:
        return "\n".join(lines)
    reached = bisect_right(radii, certificate.radius)  # number of the run's radii that the certificate reaches
    if reached == 0:
        where = "is smaller than all of these"
    else:
        where = f"reaches {radii[reached - 1]:g}, like {shares[reached - 1]} of these images"
        if reached < len(radii):
            where += f", but not {radii[reached]:g}, which {shares[reached]} of them reach"
    lines.append(f"Your certificate's radius, {floored(certificate.radius)} at sigma {certificate.sigma:g}, {where}.")
    return "\n".join(lines)

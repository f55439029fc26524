"""A page for the browser with the figures and the images of one or several runs, in one file that needs no network.

Whatever comes from records and settings is text: it is escaped where Python writes it into the page, and the scripts
of the page set it as text.
"""

import base64
import hashlib
import json
import math
import sys
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from string import Template
from typing import Any

from .decision import what_decides, what_decides_briefly, what_was_run
from .figures import MEANING_OF_SECONDS, SETTINGS_SHOWN, Report
from .outcomes import Outcome
from .paired import Paired
from .share import Share


PAGE = "report.html"
"""Name of the file beside reports."""

SCRIPTS = ("page_common.js", "page_charts.js", "page_tables.js", "page_pairs.js")

MOST_VOTES = 4
"""Classes of an image whose votes are shown."""

MOST_LISTED = 100
"""Failed images of a run that are listed, and records that do not verify."""


def write_page(reports: Sequence[Report], path: str | Path, thumbnails: Sequence[Mapping[int, str]] = ()) -> None:
    """Write the page of one or several runs.

    Args:
        reports: The runs.
        path: HTML file to write.
        thumbnails: For each run, a PNG file in base64 by image index. Default: the page shows no images.

    Raises:
        OSError: The file cannot be written.
    """
    data = json.dumps(page_data(reports, thumbnails), separators=(",", ":"))
    # In a script element, "<" may begin its end tag or a comment. JSON has a second spelling for it.
    data = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    style, script = _template("page.css"), "\n".join(_template(name) for name in SCRIPTS)
    values = {
        "title": escape(", ".join(report.name for report in reports)),
        "policy": f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}",
        "style": style,
        "script": script,
        "data": data,
        "figures": _figures(reports),
        "details": "\n".join(_details(report) for report in reports),
    }
    text = Template(_template("page.html")).substitute(values)
    # a model or data set may have a name that is not valid Unicode
    Path(path).write_text(text, encoding="utf-8", errors="backslashreplace")


def page_data(reports: Sequence[Report], thumbnails: Sequence[Mapping[int, str]] = ()) -> dict[str, Any]:
    """What the scripts of the page work with, as plain values for JSON.

    Args:
        reports: The runs.
        thumbnails: For each run, a PNG file in base64 by image index.

    Returns:
        `runs`, `pairs` (comparisons of two runs, by their positions in `runs`), and `pictures` (PNG files in base64,
        one for all runs that show it).
    """
    pictures: dict[str, int] = {}
    runs = []
    for number, report in enumerate(reports):
        run = _run(report)
        if number < len(thumbnails):
            run["images"]["picture"] = [
                pictures.setdefault(thumbnails[number][index], len(pictures)) if index in thumbnails[number] else None
                for index in run["images"]["index"]
            ]
        runs.append(run)
    pairs = [_pair(reports, *numbers) for numbers in combinations(range(len(reports)), 2)]
    return {"runs": runs, "pairs": pairs, "pictures": list(pictures)}


def _run(report: Report) -> dict[str, Any]:
    run = {
        "name": report.name,
        "certified": report.certified,
        "sigma": report.run["sigma"],
        "total": len(report.outcomes),
        "radii": report.radii,
        "radius": _radius_steps(report),
        "names": _names(report),
        "classes": [_class(label, only) for label, only in report.classes.items()],
        "images": _images(report.outcomes),
    }
    if report.certified:
        run["p_lower"] = _p_lower_steps(report)
        run["sought"] = report.radii[-1] if report.run.get("stop_early") else None
    return run


def _names(report: Report) -> dict[int, str]:
    """Names of the classes that occur, as far as they have one; two of one name get their numbers too."""
    named = report.run.get("id2label") or {}
    occurring: set[int] = set()
    for outcome in report.outcomes:
        occurring |= {outcome.label, *_most_votes(outcome)}
        if outcome.predicted is not None:
            occurring.add(outcome.predicted)
    names = {label: str(named[str(label)]) for label in sorted(occurring) if str(label) in named}
    several = list(names.values())
    return {label: f"{name} ({label})" if several.count(name) > 1 else name for label, name in names.items()}


def _most_votes(outcome: Outcome) -> dict[int, int]:
    """The classes with most votes, in descending order."""
    votes = sorted((outcome.votes or {}).items(), key=lambda vote: (-vote[1], vote[0]))
    return dict(votes[:MOST_VOTES])


def _images(outcomes: Sequence[Outcome]) -> dict[str, list]:
    """The images as columns, which take less room than rows."""
    images: dict[str, list] = {
        name: [getattr(outcome, field) for outcome in outcomes]
        for name, field in (
            ("index", "image_index"),
            ("label", "label"),
            ("predicted", "predicted"),
            ("radius", "radius"),
            ("evaluations", "evaluations"),
        )
    }
    images["seconds"] = [None if one.seconds is None else float(f"{one.seconds:.4g}") for one in outcomes]
    images["copies"] = [sum((outcome.votes or {}).values()) for outcome in outcomes]
    images["votes"] = [list(_most_votes(outcome).items()) for outcome in outcomes]
    return images


def _radius_steps(report: Report) -> dict[str, list]:
    """Certified accuracy: a share holds back to the position before its own, the last one beyond all of them."""
    proved = sorted(outcome.proved for outcome in report.outcomes)
    positions = sorted({0.0, *(radius for radius in proved if radius > 0)})
    return _steps(positions, [len(proved) - bisect_left(proved, radius) for radius in positions], len(proved))


def _p_lower_steps(report: Report) -> dict[str, list]:
    """The share of images with at least a `p_lower`, against -log10(1 - p_lower): 1 is 0.9, 2 is 0.99."""
    p_lower = sorted(outcome.p_lower for outcome in report.outcomes)
    levels = sorted({0.5, *(value for value in p_lower if value > 0)})
    counts = [len(p_lower) - bisect_left(p_lower, level) for level in levels]
    # above 0 also if the bound was rounded up to 1
    positions = [-math.log10(max(1 - level, sys.float_info.epsilon / 2)) for level in levels]
    return _steps(positions, counts, len(p_lower))


def _steps(positions: list[float], counts: list[int], total: int) -> dict[str, list]:
    counts = [*counts, 0]
    intervals = [_interval(Share(count, total)) for count in counts]
    return {
        "x": positions,
        "count": counts,
        "low": [round(low, 5) for low, _ in intervals],
        "high": [round(high, 5) for _, high in intervals],
    }


@cache  # large runs have many shares, and the same ones in each curve
def _interval(share: Share) -> tuple[float, float]:
    return share.interval


def _class(label: int, only: Report) -> dict[str, Any]:
    means = {quantity: None if both is None else both[0] for quantity, both in only.cost.items()}
    return {
        "label": label,
        "images": len(only.outcomes),
        "correct": [only.at(radius).count for radius in only.radii],
        "average_radius": only.average_radius if only.certified else None,
        "evaluations": means["network evaluations"],
        "seconds": means["seconds"],
    }


def _pair(reports: Sequence[Report], first: int, second: int) -> dict[str, Any]:
    paired = Paired(reports[first], reports[second])
    rows = []
    for radius in paired.radii:
        counts = paired.at(radius)
        rows.append(
            [
                radius,
                counts.both,
                counts.only_first,
                counts.only_second,
                counts.neither,
                float(f"{counts.p_value:.3g}"),
            ]
        )
    return {
        "first": first,
        "second": second,
        "shared": paired.shared,
        "differing": paired.differing,
        "columns": ["radius", "both", "only_first", "only_second", "neither", "p_value"],
        "rows": rows,
    }


def _figures(reports: Sequence[Report]) -> str:
    """The main figures of all runs as a table of HTML, for readers with and without scripts."""
    radii = sorted({radius for report in reports for radius in report.radii if radius > 0 and report.certified})
    heads = ["run", "noise σ", "images", "correct", *(f"certified at {radius:g}" for radius in radii)]
    heads += ["average radius", "abstained", "evaluations per image", "seconds per image"]
    rows = []
    for number, report in enumerate(reports):
        name = f'<span class="dot s{number % 7}"></span><b>{escape(report.name)}</b><small>{_subject(report)}</small>'
        cells = [_number(f"{report.run['sigma']:g}" if report.certified else "none")]
        cells += [_number(f"{len(report.outcomes):,}"), _share(report.at(0))]
        for radius in radii:
            cells.append(_share(report.at(radius)) if report.answers(radius) else _number("–"))
        if report.certified:
            cells += [_number(f"{report.average_radius:.3f}"), _share(report.abstentions)]
        else:
            cells += [_number("–")] * 2
        for both, digits in zip(report.cost.values(), (0, 2), strict=True):
            cells.append(_number("–" if both is None else f"{both[0]:,.{digits}f}"))
        rows.append(f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>')
    head = "".join(f'<th scope="col">{escape(one)}</th>' for one in heads)
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{''.join(rows)}</tbody></table>"


def _subject(report: Report) -> str:
    """Model and method of a run in a few words, escaped."""
    return escape(" · ".join([what_was_run(report.run), what_decides_briefly(report.run)]))


def _number(text: str) -> str:
    return f"<td>{escape(text)}</td>"


def _share(share: Share) -> str:
    """A cell with a share and its 95% interval."""
    low, high = share.interval
    title = f"{share.count:,} of {share.total:,}, 95% interval {low:.1%} to {high:.1%}"
    return f'<td title="{title}">{share.value:.1%}<small>{100 * low:.1f} to {100 * high:.1f}</small></td>'


def _details(report: Report) -> str:
    """Settings of a run, what its figures mean, and what is in none of them, as HTML."""
    settings = [(name, str(report.run[name])) for name in SETTINGS_SHOWN if report.run.get(name) is not None]
    if report.task is not None:
        settings.insert(0, ("task", report.task.title))
    sentences = [what_decides(report.run) or ""]
    if report.certified:
        sentences += [report.meaning_of_p_lower, report.meaning_of_alpha]
    sentences.append(f"{MEANING_OF_SECONDS}.")
    warning = ""
    if report.missing:
        warning = f"Not finished: {report.missing:,} of {report.run['images']:,} images have no record here."
        warning = f'<p class="warning">{escape(warning)}</p>'
    pairs = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in settings)
    return (
        f"{warning}<details><summary>{escape(report.name)}: settings and meaning</summary>\n<dl>{pairs}</dl>\n"
        + "\n".join(f"<p>{escape(sentence)}</p>" for sentence in sentences if sentence)
        + _listed("Failed images, in none of these figures", report.failed)
        + _listed("Records that do not verify, in none of these figures", report.rejected)
        + "</details>"
    )


def _listed(title: str, reasons: dict[int, str]) -> str:
    """The number of reasons, and a list of the first ones."""
    items = [f"<li>image {index}: {escape(reason)}</li>" for index, reason in list(reasons.items())[:MOST_LISTED]]
    if len(reasons) > MOST_LISTED:
        items.append(f"<li>and {len(reasons) - MOST_LISTED:,} more, which report.md lists</li>")
    rows = f"<ul>{''.join(items)}</ul>" if items else ""
    return f"<p>{title}: {len(reasons):,}</p>{rows}"


def _template(name: str) -> str:
    return (files(__package__) / "templates" / name).read_text(encoding="utf-8").strip("\n")


def _hash(text: str) -> str:
    """The source expression of a content security policy for the inline text of an element."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"

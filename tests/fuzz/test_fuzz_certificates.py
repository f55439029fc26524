"""Certificates from random votes, and what damage, confusion or malice makes of their JSON."""

import contextlib
import io
import json
import sys

import numpy as np
import pytest
import torch
from helpers.acceptable import ALPHA, GRID, NOISE, SEED, grid_fits, integer, is_number, one_of, optional
from helpers.fuzzing import HUGE, REFUSED, Subject, cases, check_sound
from hypothesis import event, example, given
from hypothesis import strategies as st

from diffusers_ndc import Certificate
from diffusers_ndc.certification.bound_names import BOUNDS, CURTAILED
from diffusers_ndc.certification.bounds import MAX_N
from diffusers_ndc.common.seeds import uniform_number
from diffusers_ndc.evaluation.verify import check_file, main


@st.composite
def made_certificates(draw):
    """Certificates from votes of any kind that a run could give."""
    bound, grid = draw(st.sampled_from(sorted(BOUNDS))), draw(st.sampled_from([None, 1, 16, 1024]))
    most = draw(st.sampled_from([3, 100, 10_000, 10**8]))
    counts = draw(st.dictionaries(st.integers(0, 999), st.integers(1, most), min_size=1, max_size=4))
    leaderless = bound in ("mixture", *CURTAILED) and draw(st.booleans())
    selection = {} if leaderless else draw(st.dictionaries(st.integers(0, 999), st.integers(1, 100), min_size=1))
    if not leaderless and draw(st.booleans()):  # mostly, the draws agree
        selection = {max(counts, key=counts.get): 100, **dict.fromkeys(selection, 1)}
    made, record = sum(counts.values()), {}
    if bound == "empirical-bernstein":
        mean = draw(st.floats(0, 1))
        spread = draw(st.floats(0, 1))
        record["score_sum"] = made * mean
        record["score_squares"] = made * mean * (mean + spread * (1 - mean))
    seed, image_hash = draw(st.integers(0, 2**63 - 1)), draw(st.text("0123456789abcdef", min_size=32, max_size=32))
    return Certificate.from_counts(
        selection,
        counts,
        draw(st.floats(1e-3, 1) if grid else st.floats(1e-300, 1e100)),
        draw(st.floats(1e-50, 0.5) | st.floats(0.5, 0.999)),
        bound,
        n=made + (draw(st.integers(0, most)) if bound in CURTAILED else 0),
        num_classes=1000,
        u=uniform_number(seed, image_hash) if draw(st.booleans()) or "random" in bound else None,
        seed=seed,
        image_hash=image_hash,
        evaluations=draw(st.integers(0, 10**9)),
        base_classifier=draw(st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=2)),
        grid=grid,
        pixels=draw(st.integers(1, 10**6)) if grid else None,
        **record,
    )


RECORD = Certificate.from_counts(
    {3: 18, 5: 2}, {3: 990, 5: 7, 8: 3}, 0.25, 0.001, num_classes=10, seed=7, image_hash="00ff", evaluations=61_200
).to_dict()

JSON_VALUES = st.recursive(
    st.sampled_from([None, True, False, 0, 1, -1, 3, 10**30, 2**63, 0.25, 0.5, 1e308, 5e-324, float("nan")])
    | st.sampled_from([float("inf"), "", "3", "03", " 3", "३", "\ud800", "\u2028", "mixture", "runner-up", "0.25"])
    | st.integers()
    | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["3", "5", "x"]), inner, max_size=3),
    max_leaves=4,
)


@st.composite
def altered(draw, record=RECORD, most=3):
    """A record after some alterations: fields or counts deleted, replaced, swapped, nested, added."""
    data = json.loads(json.dumps(record))
    for _ in range(draw(st.integers(1, most))):
        inside = draw(st.sampled_from(["", "", "", "selection_counts", "counts", "base_classifier"]))
        place = data.get(inside, data)
        place = place if isinstance(place, dict) and place else data
        if not data:
            break
        names = sorted(place)
        name, other = draw(st.sampled_from(names)), draw(st.sampled_from(names))
        how = draw(st.sampled_from(["delete", "replace", "replace", "swap", "nest", "add", "step"]))
        if how == "delete":
            del place[name]
        elif how == "replace":
            place[name] = draw(JSON_VALUES)
        elif how == "swap":
            place[name], place[other] = place[other], place[name]
        elif how == "nest":
            place[name] = draw(st.sampled_from([[place[name]], {"3": place[name]}, {name: place[name]}]))
        elif how == "add":
            place[draw(st.text(max_size=3) | st.sampled_from(["03", "-1", "7", "grid", "pixels", "u"]))] = 16
        elif type(place[name]) in (int, float):
            place[name] += draw(st.sampled_from([-1, 1, 0.25, 1e-6, 10**9]))
    return data


def same(one, other) -> bool:
    """Whether two records are one to every reader: 1, 1.0 and true are not."""
    try:
        return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    except TypeError:  # keys that JSON cannot have beside each other
        return False


@cases(500)
@given(certificate=made_certificates())
def test_certificates_from_votes_are_sound_also_through_json(certificate):
    event(certificate.bound)
    event("abstained" if certificate.abstained else "certified")
    check_sound(certificate)
    assert certificate.radius <= 40 * certificate.sigma
    read = Certificate.from_dict(json.loads(json.dumps(certificate.to_dict(), allow_nan=False)))
    assert read == certificate and read.verify()


DRAWN_U = uniform_number(1, "00")
FROM_COUNTS = {
    "selection_counts": {3: 18, 5: 2},
    "counts": {3: 990, 5: 7},
    "sigma": 0.25,
    "alpha": 0.001,
    "bound": "mixture",
    "n0": 20,
    "n": 997,
    "num_classes": 10,
    "u": DRAWN_U,
    "score_sum": 900.0,
    "score_squares": 890.0,
    "seed": 1,
    "image_hash": "00",
    "evaluations": 1,
    "base_classifier": {},
    "grid": None,
    "pixels": None,
}
VOTES = [{3: 18, 5: 2}, {5: 0}, {3: 0, 5: 10}, {3: 2.0}, {3: True}, {-1: 5}, {"3": 5}, {3: -5, 5: 20}, {3: 10**400}]


def votes(valid):
    """A rule: these votes are acceptable; dictionaries with other labels or numbers than integers of votes are not."""

    def rule(value):
        if not isinstance(value, dict):
            return False
        if not all(type(part) is int and part >= 0 for part in (*value, *value.values())) or 0 in value.values():
            return False
        return True if value == valid else None

    return rule


def number_of_draws(made):
    """A rule: `None`, or the number of draws that the valid votes are of; whether another one will do is left open."""

    def rule(value):
        if value is None:
            return True
        if type(value) is not int:
            return False
        return True if value == made else None

    return rule


def sum_of_scores(valid):
    """A rule: `None` or this sum; other numbers are left open."""

    def rule(value):
        if value is None:
            return True
        if not is_number(value):
            return False
        return True if value == valid else None

    return rule


def record_fits(arguments) -> bool | None:
    """Whether the record has what its bound and its grid need, and `u` is that of seed and image."""
    bound, u, grid = arguments["bound"], arguments["u"], arguments["grid"]
    if bound == "runner-up" and arguments["num_classes"] is None:
        return False
    if bound == "randomized-clopper-pearson" and None in (u, arguments["seed"], arguments["image_hash"]):
        return False
    if bound == "empirical-bernstein" and None in (arguments["score_sum"], arguments["score_squares"]):
        return False
    seed, image_hash = arguments["seed"], arguments["image_hash"]
    if None not in (u, seed, image_hash) and u != uniform_number(seed, image_hash):
        return False
    return grid is None or (arguments["pixels"] is not None and grid_fits(grid, arguments["sigma"]))


CERTIFICATES = Subject(
    Certificate.from_counts,
    FROM_COUNTS,
    {
        "selection_counts": votes(FROM_COUNTS["selection_counts"]),
        "counts": votes(FROM_COUNTS["counts"]),
        "sigma": NOISE,
        "alpha": ALPHA,
        "bound": one_of(*BOUNDS),
        "n0": number_of_draws(20),
        "n": number_of_draws(997),
        "num_classes": optional(integer(6, MAX_N)),
        "u": lambda value: True if value is None or value is DRAWN_U else None if is_number(value) else False,
        "score_sum": sum_of_scores(900.0),
        "score_squares": sum_of_scores(890.0),
        "seed": optional(SEED),
        "image_hash": optional(lambda value: isinstance(value, str)),
        "evaluations": optional(integer(0, 2**53)),
        "base_classifier": lambda value: (not value or None) if isinstance(value, dict) else False,
        "grid": GRID,
        "pixels": lambda value: True if value is None or integer(1, 2**53)(value) else None,
    },
    record_fits,
    {
        "selection_counts": [*VOTES, {3: 18, 5: 2}],
        "counts": [*VOTES, {3: 990, 5: 7}],
        "bound": sorted(BOUNDS),
        "num_classes": [6, 5],
        "u": [DRAWN_U],
        "grid": [16],
        "pixels": [64],
    },
)


@cases(700)
@given(changes=CERTIFICATES.spoilt(), bound=st.sampled_from(sorted(BOUNDS)))
@example({"selection_counts": {5: 0}, "n0": 0}, "clopper-pearson")  # a candidate chosen after the votes, at full alpha
@example({"sigma": 1e9, "grid": 1024, "pixels": 1}, "clopper-pearson")  # the table of the grid's law filled the memory
@example({"counts": {3: 10**17}, "n": 10**17}, "clopper-pearson")  # the bound was rounded up to 1
@example({"counts": {3: 10}, "n": 10, "alpha": 1 - 2**-53}, "clopper-pearson")
@example({"counts": {3: 10**15, 5: 5 * 10**14}, "n": 15 * 10**14}, "clopper-pearson")  # it was above what it bounds
@example({"sigma": HUGE}, "clopper-pearson")
@example({"score_squares": torch.tensor([0.25, 0.5])}, "empirical-bernstein")
def test_certificates_from_hostile_votes(changes, bound):
    changes = {"bound": bound, **changes}
    certificate = CERTIFICATES.run(changes)
    if certificate is not REFUSED:
        check_sound(certificate, plain=CERTIFICATES.verdict({**FROM_COUNTS, **changes}) is True)


@pytest.mark.parametrize("changes", [{"pixels": np.float32(0.25)}, {"score_sum": np.float32(900.0)}], ids=str)
def test_a_certificate_that_is_made_can_be_saved(changes):
    certificate = CERTIFICATES.run(changes)
    assert certificate is REFUSED or json.dumps(certificate.to_dict())


@pytest.mark.parametrize("bound", sorted(BOUNDS))
def test_every_acceptable_value_of_every_argument_is_accepted(bound):
    substitutions = CERTIFICATES.single_substitutions()
    assert len(substitutions) > 2 * len(CERTIFICATES.rules)
    for changes in substitutions:
        CERTIFICATES.run({"bound": bound, **changes})


@pytest.mark.parametrize("bound", sorted(BOUNDS))
def test_every_other_value_of_every_argument_is_refused(bound):
    for changes in CERTIFICATES.wrong_substitutions():
        CERTIFICATES.run({"bound": bound, **changes})


@cases(1000)
@given(data=altered() | JSON_VALUES)
@example(RECORD)
@example({**RECORD, "label": 3.0})
@example({**RECORD, "sigma": 10**400})
@example({**RECORD, "counts": {**RECORD["counts"], "03": 1}})
@example({**RECORD, "base_classifier": {1: {}, "a": {}}})
@example({1: 2, "a": 3})
def test_from_dict_refuses_with_a_value_error_and_never_takes_what_was_altered(data):
    try:
        certificate = Certificate.from_dict(data)
    except ValueError:
        assert not same(data, RECORD), "a record that was not altered is refused"
        return
    assert "digest" not in data or same(data, RECORD)
    assert isinstance(certificate.flaw, str | None)
    assert certificate.flaw is None or not same(data, RECORD)


@cases(1000)
@given(data=altered())
@example(dict(RECORD))
@example({**RECORD, "label": 3.0})
@example({**RECORD, "sigma": True})
@example({**RECORD, "selection_counts": {"8": 0}, "n0": 0, "radius": 0, "label": None})
@example({**RECORD, "evaluations": "many"})
@example({**RECORD, "sigma": 1e9, "grid": 1024, "pixels": 1})
def test_what_a_forger_signs_again_is_sound_only_if_it_follows_from_its_votes(data):
    """Without the digest, which can be made anew, all that is left is what the votes say."""
    data.pop("digest", None)
    unaltered = same(data, {name: value for name, value in RECORD.items() if name != "digest"})
    try:
        certificate = Certificate.from_dict(data)
    except ValueError:
        assert not unaltered
        return
    assert certificate.flaw is None or not unaltered
    if certificate.flaw is None:
        event("sound")
        check_sound(certificate)
        again = {name: value for name, value in vars(certificate).items() if name not in ("label", "radius")}
        again = Certificate.from_counts(**again)
        assert (again.label, again.radius) == (certificate.label, pytest.approx(certificate.radius, rel=1e-9))


TEXT = json.dumps(RECORD)
DEEP = "[" * 100_000 + "]" * 100_000
NUMBERS = ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "0x10", "1_000", "-0", "0.25 ", "true", "\ud800", DEEP]


@st.composite
def damaged(draw):
    """Bytes of a file with a record, or several, that were cut, flipped, doubled or filled with something else."""
    data = (TEXT if draw(st.booleans()) else f'{{"index": 1, "certificate": {TEXT}}}\n' * 2).encode()
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 40)))
        how = draw(st.sampled_from(["cut", "flip", "double", "truncate", "insert", "number", "key"]))
        if how == "cut":
            data = data[:start] + data[end:]
        elif how == "flip":
            data = data[:start] + bytes(byte ^ draw(st.integers(1, 255)) for byte in data[start:end]) + data[end:]
        elif how == "double":
            data = data[:end] + data[start:]
        elif how == "truncate":
            data = data[:start]
        elif how == "insert":
            data = data[:start] + draw(st.binary(max_size=8)) + data[start:]
        elif how == "number":
            number = draw(st.sampled_from(NUMBERS)).encode("utf-8", "surrogatepass")
            data = data.replace(draw(st.sampled_from([b"0.25", b"990", b"0.001", b"null", b"7"])), number, 1)
        else:  # before the one that counts for this reader, and perhaps not for another
            data = data.replace(b'"label"', b'"radius": 9.0, "label"', 1)
    return data


@cases(700)
@given(data=damaged())
@example(TEXT.replace('"label"', '"radius": 9.0, "label"').encode())
@example(TEXT.replace("0.25", DEEP).encode())
@example(DEEP.encode())
@example(b"\xef\xbb\xbf" + TEXT.encode())
@example(TEXT.encode())
@example(TEXT.replace("mixture", "\ud800").encode("utf-8", "surrogatepass"))
def test_a_damaged_file_is_told_and_no_altered_record_is_called_sound(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.jsonl"
    path.write_bytes(data)
    for _, certificate, flaw in check_file(path):
        if flaw is None:
            assert same(certificate.to_dict(), RECORD)
        else:
            assert data != TEXT.encode(), "an undamaged file is called flawed"
    code, printed = run_main([path])
    assert code in (0, 1) and (code == 1) == ("FLAWED" in printed)


def run_main(files) -> tuple[int, str]:
    """Exit code and standard output of the program."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), pytest.raises(SystemExit) as exit:
        patch.setattr(sys, "argv", ["certificate", *map(str, files)])
        main()
    out.flush()
    return exit.value.code, out.buffer.getvalue().decode("ascii")


@pytest.mark.parametrize("name", ["no such file", "\udcff\u2603", "."])
def test_a_file_that_cannot_be_read_has_its_code(tmp_path, name):
    code, printed = run_main([tmp_path / name])
    assert code == 2 and printed.startswith("UNREAD")

"""The program that verifies files of certificates."""

import json
import random
import subprocess
import sys

import pytest

from diffusers_ndc import Certificate, LipschitzCertificate, NoiseLevels
from diffusers_ndc.evaluation.verify import check_file, main, parse_args


@pytest.fixture
def certificate():
    return Certificate.from_counts(
        {3: 18, 5: 2}, {3: 990, 5: 7, 8: 3}, 0.25, 0.001, seed=7, image_hash="00ff", evaluations=61_200
    )


@pytest.fixture
def lipschitz_certificate():
    levels = NoiseLevels((4.0,), (1.0,), cap=0.3)
    return LipschitzCertificate.from_scores(
        alpha=0.001,
        n0=20,
        n=10_000,
        selection_losses={0: 0.1, 1: 0.2},
        score_sums={1: 9_000.0},
        score_squares={1: 8_100.0},
        pixels=784,
        num_classes=2,
        base_classifier={"method": "dc", "levels": levels.to_dict()},
    )


def test_the_check_of_a_file_needs_no_torch_and_rejects_what_was_tampered_with(tmp_path):
    """A thousand records, each altered in one value or letter at random; and as many that were left alone."""
    rng, good, bad = random.Random(0), tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    sound, tampered = [], []
    for number in range(1000):
        n, votes = rng.randint(50, 10_000), rng.random()
        count = int(n * (0.3 + 0.7 * votes))
        record = Certificate.from_counts(
            {3: 18, 5: 2}, {3: count, 11: n - count}, 0.25, 0.001, seed=number, image_hash=f"{number:032x}"
        )
        sound.append(json.dumps({"index": number, "certificate": record.to_dict()}))
        tampered.append(json.dumps({"index": number, "certificate": _tampered(record.to_dict(), rng)}))
    good.write_text("\n".join(sound))
    bad.write_text("\n".join(tampered))
    assert all(flaw is None for _, _, flaw in check_file(good))
    assert all(flaw for _, _, flaw in check_file(bad)) and len(list(check_file(bad))) == 1000

    code = "import runpy, sys; runpy.run_module('diffusers_ndc.evaluation.verify', None, '__main__'); assert 0"
    without_torch = "class No:\n find_spec = lambda self, name, *_: 1 / (name != 'torch') and None\n"
    code = f"{without_torch}import sys; sys.meta_path.insert(0, No())\n{code}"
    for files, code_of_exit in (([good], 0), ([good, bad], 1), ([good, tmp_path / "none"], 2)):
        done = subprocess.run([sys.executable, "-c", code, *map(str, files)], capture_output=True, text=True)
        assert done.returncode == code_of_exit, done.stderr
        assert done.stdout.count("sound ") == 1000 and done.stdout.count("FLAWED ") == (1000 if bad in files else 0)


def _tampered(data, rng):
    """One change: a value, a count, or a field that is gone."""
    data = json.loads(json.dumps(data))
    name = rng.choice(sorted(data))
    value = data[name]
    if rng.random() < 0.1:
        del data[name]
    elif isinstance(value, dict) and value:
        key = rng.choice(sorted(value))
        value[key] += rng.choice([-1, 1, 7])
    elif isinstance(value, (int, float)):
        data[name] = value + rng.choice([-1, 1, 0.001, 1e-6])
    else:
        data[name] = f"{value}0"
    return data


def test_a_certificate_alone_in_a_file_is_checked(certificate, tmp_path):
    file = tmp_path / "certificate.json"
    file.write_text(json.dumps(certificate.to_dict(), indent=2))
    ((place, found, flaw),) = check_file(file)
    assert (place, found, flaw) == (str(file), certificate, None)
    file.write_text('{"index": 3, "failed": "OSError: truncated"}\n{"index": 4, "label": 1, "predicted": 1}\n')
    assert list(check_file(file)) == []
    for text in ("[]", "3", "null", '"a"', "{", '{"certificate": null}', '{"certificate": {}}'):
        file.write_text(text)
        ((_, found, flaw),) = check_file(file)
        assert found is None and flaw


def test_both_kinds_of_certificates_are_checked(certificate, lipschitz_certificate, tmp_path):
    file = tmp_path / "certificates.jsonl"
    records = [certificate.to_dict(), lipschitz_certificate.to_dict()]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert not lipschitz_certificate.abstained
    assert list(check_file(file)) == [(f"{file}:1", certificate, None), (f"{file}:2", lipschitz_certificate, None)]
    for record in records:
        del record["digest"]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert [flaw for _, _, flaw in check_file(file)] == ["there is no digest"] * 2


def test_a_file_without_certificates_is_said_to_have_none(certificate, tmp_path, monkeypatch, capsys):
    empty, file = tmp_path / "empty.jsonl", tmp_path / "certificate.json"
    empty.write_text('{"index": 3, "failed": "OSError: truncated"}\n')
    file.write_text(json.dumps(certificate.to_dict()))
    for files, none, sound in (([empty], 1, 0), ([empty, file], 1, 1), ([file], 0, 1)):
        monkeypatch.setattr(sys, "argv", ["verify", *map(str, files)])
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr().out
        assert stopped.value.code == 0 and said.count("sound ") == sound
        assert said.count(f"none    {empty}: there are no certificates") == none


@pytest.mark.parametrize("option", [["--count", "2"], ["--model", "folder"], ["--dataset", "folder"]])
def test_options_of_a_replay_need_it(option, capsys):
    assert parse_args(["file", "--replay", *option]).replay
    with pytest.raises(SystemExit) as stopped:
        parse_args(["file", *option])
    assert stopped.value.code == 2 and "must be used together with `--replay`" in capsys.readouterr().err

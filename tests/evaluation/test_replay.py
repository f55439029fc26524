"""Records whose votes are cast again, by the run's model and on its images."""

import json
import shutil
import sys
from collections import Counter

import pytest
from accelerate.state import AcceleratorState

from diffusers_ndc import Certificate
from diffusers_ndc.certification import moved_votes, smoothing
from diffusers_ndc.certification.vote_sequence import pack_votes, unpack_votes
from diffusers_ndc.evaluation.replay import replay
from diffusers_ndc.evaluation.run import evaluate
from diffusers_ndc.evaluation.settings import Settings
from diffusers_ndc.evaluation.verify import main


@pytest.fixture
def make(small_model, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    model, data = small_model(tmp_path)

    def make(**settings):
        settings = {
            "n0": 3,
            "n": 30,
            "limit": 5,
            "seed": 1,
            "batch_size": 64,
            "output": str(tmp_path / "run"),
            **settings,
        }
        evaluate(Settings(str(model), str(data), **settings))
        return tmp_path / "run"

    return make


def rewrite(folder, change):
    """Alter the certificate of each record; the digest is new, as a forger would make it."""
    (path,) = folder.glob("*.jsonl")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        certificate = Certificate.from_dict(record["certificate"])
        record["certificate"] = change(certificate).to_dict()
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def verdicts(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["certificate", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code, capsys.readouterr().out


@pytest.mark.parametrize(
    "settings", [{}, {"stop_early": True, "radii": [0.05, 0.2], "n": 90}, {"grid": 16}, {"mixed_precision": "bf16"}]
)
def test_the_votes_of_a_run_fall_as_recorded(make, settings):
    replays = list(replay(make(**settings)))
    assert sorted(found.index for found in replays) == [0, 1, 2, 3, 4]
    assert all(found.certificate.agrees(found.again) for found in replays)


def test_forged_votes_are_found_out(make, monkeypatch, capsys):
    """Records that are consistent in themselves: only new votes can tell."""
    folder = make()
    genuine = verdicts(monkeypatch, capsys, *folder.glob("*.jsonl"), "--replay")
    assert genuine[0] == 0 and genuine[1].count("again ") == 5 and genuine[1].count("votes as recorded") == 5

    def forge(certificate):
        votes = ({certificate.candidate: 3}, {certificate.candidate: 30}, certificate.sigma, certificate.alpha)
        record = ("num_classes", "seed", "image_hash", "base_classifier")
        return Certificate.from_counts(*votes, **{name: getattr(certificate, name) for name in record})

    path = rewrite(folder, forge)
    assert verdicts(monkeypatch, capsys, path)[0] == 0
    code, said = verdicts(monkeypatch, capsys, path, "--replay", "--count", "2")
    assert code == 1 and said.count("sound ") == 5 and said.count("MOVED ") == 2 and "of 33 votes" in said


def test_a_luckier_number_of_true_votes_is_found_out(make, monkeypatch, capsys):
    """Votes that were cast, but for a stop chosen after seeing them, or of another seed or alpha."""
    folder = make()
    shutil.copytree(folder, folder.with_name("genuine"))
    lucky = {"n": 20, "vote_sequence": None}
    path = rewrite(folder, lambda c: Certificate.from_counts(**_fields(c, **lucky, counts={c.candidate: 20})))
    code, said = verdicts(monkeypatch, capsys, path, "--replay")
    assert code == 1 and said.count("FLAWED ") == 5 and "must be that of the run, 30, got 20" in said
    for change in ({"alpha": 0.4}, {"seed": 2}, {"image_hash": "0" * 32}):
        shutil.rmtree(folder)
        shutil.copytree(folder.with_name("genuine"), folder)
        rewrite(folder, lambda c, change=change: Certificate.from_counts(**_fields(c, **change)))
        (name,) = change
        assert all(name in found.problem for found in replay(folder, 2))


def _fields(certificate, **change):
    return {**{name: value for name, value in vars(certificate).items() if name not in ("label", "radius")}, **change}


def test_an_altered_label_is_found_out(make):
    folder = make()
    (path,) = folder.glob("*.jsonl")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[2]["label"] += 1
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    problems = [found.problem for found in replay(folder) if found.again is None]
    altered = records[2]["label"]
    assert problems == [f"`label` of the record must be that of the data set, {altered - 1}, got {altered}."]


def test_a_record_without_a_label_is_found_out(make):
    folder = make()
    (path,) = folder.glob("*.jsonl")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    del records[2]["label"]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    (problem,) = [found.problem for found in replay(folder) if found.again is None]
    assert problem.startswith("`label` of the record must be") and problem.endswith("got None.")


def test_copies_of_another_kind_of_device_are_made_again(make, monkeypatch, capsys):
    """The noise is the same there."""
    path = rewrite(make(), lambda c: Certificate.from_counts(**_fields(c, device="cuda")))
    code, said = verdicts(monkeypatch, capsys, path, "--replay")
    assert code == 0 and said.count("votes as recorded") == 5


def test_options_of_replay_raise_without_it(make, monkeypatch, capsys):
    (path,) = make().glob("*.jsonl")
    assert verdicts(monkeypatch, capsys, path, "--count", "2")[0] == 2


def test_another_model_or_folder_raises(make, small_model, tmp_path, monkeypatch, capsys):
    folder = make()
    with pytest.raises(ValueError, match="`count` must be from 1 to 5, .* got 6"):
        next(replay(folder, 6))
    other, data = small_model(tmp_path / "elsewhere", images_per_class=5)
    assert len(list(replay(folder, model=str(other)))) == 5  # the same weights in another place
    with pytest.raises(ValueError, match="data_hash"):
        next(replay(folder, dataset=str(data)))
    path = folder / "run.json"
    run = json.loads(path.read_text())
    path.write_text(json.dumps({**run, "weight_hash": "0"}))
    assert verdicts(monkeypatch, capsys, *folder.glob("*.jsonl"), "--replay")[0] == 2
    path.write_text(json.dumps({"id": "1"}))
    with pytest.raises(ValueError, match="run.json .*must have the settings of a run, got .*'id'"):
        next(replay(folder))
    path.unlink()
    code, said = verdicts(monkeypatch, capsys, *folder.glob("*.jsonl"), "--replay")
    assert code == 2 and "has no run.json" in said


def test_a_moved_vote_is_listed(make, monkeypatch, capsys):
    """One vote of each record is given to another class, in the counts and in their order."""

    def move_one(certificate):
        labels = unpack_votes(certificate.vote_sequence, certificate.votes)
        labels[7] = (labels[7] + 1) % certificate.num_classes
        counts = dict(sorted(Counter(labels[sum(certificate.selection_counts.values()) :]).items()))
        return Certificate.from_counts(**_fields(certificate, counts=counts, vote_sequence=pack_votes(labels)))

    path = rewrite(make(), move_one)
    code, said = verdicts(monkeypatch, capsys, path, "--replay")
    assert code == 1 and said.count("MOVED ") == 5 and said.count("no near-tie") == 5
    assert said.count(" votes, 1 of them not explained by near-ties (0 copies are)") == 5
    assert said.count("draw 4 (estimate): class ") + said.count("draw 5 (estimate): class ") == 5


def test_near_ties_explain_moved_votes(make, monkeypatch, capsys):
    """Records of counts alone, with a tolerance so wide that every copy is a near-tie."""
    folder = make(stop_early=True, radii=[0.05], n=90)
    monkeypatch.setattr(smoothing, "near_tie_tolerance", lambda settings: 1e3)
    monkeypatch.setattr(moved_votes, "LARGEST_SHARE", 1.0)

    def move_one(certificate):
        counts, leader = Counter(certificate.counts), max(certificate.counts, key=certificate.counts.get)
        counts[leader] -= 1
        counts[(leader + 1) % certificate.num_classes] += 1
        return Certificate.from_counts(**_fields(certificate, counts=dict(counts), vote_sequence=None, device="cuda"))

    path = rewrite(folder, move_one)
    code, said = verdicts(monkeypatch, capsys, path, "--replay")
    assert said.count("MOVED   ") + said.count("again   ") == 5 and "nearly tie, relative gap" in said
    assert code == (1 if "MOVED " in said else 0) and said.count(" 0 of them not explained") == said.count("again   ")
    assert "version 0.1.0 drew noise on the device (cuda)" in said and "votes there: {" in said


def test_a_malformed_certificate_is_a_problem_of_its_record(make, monkeypatch, capsys):
    folder = make()
    (path,) = folder.glob("*.jsonl")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record, certificate in zip(
        records, (None, {"label": 3}, {**records[2]["certificate"], "counts": 3}), strict=False
    ):
        record["certificate"] = certificate
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = list(replay(folder))
    assert sum(each.certificate is None and each.problem is not None for each in found) == 3
    assert sum(each.again is not None for each in found) == 2
    code, said = verdicts(monkeypatch, capsys, path, "--replay")
    assert code == 1 and said.count("votes as recorded") == 2


def test_a_logit_that_is_not_finite_is_a_problem_of_its_record(make, monkeypatch):
    folder, calls = make(), []

    def fails_once(self, images, *args, **kwargs):
        calls.append(images)
        if len(calls) == 1:
            raise FloatingPointError("Logits must be finite")
        return original(self, images, *args, **kwargs)

    original = smoothing.SmoothedClassifier.replay
    monkeypatch.setattr(smoothing.SmoothedClassifier, "replay", fails_once)
    found = list(replay(folder))
    assert [each.problem for each in found] == ["Logits must be finite", None, None, None, None]

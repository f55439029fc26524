"""`diffusers-ndc certify`, and `verify` and `replay` of what it records."""

import json

import PIL.Image
import pytest

from diffusers_ndc import NoisedDiffusionClassifierPipeline
from diffusers_ndc.command import main
from diffusers_ndc.command.main import QUIET


@pytest.fixture(scope="module")
def folders(small_model, tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def pictures(folders):
    return [str(path) for path in sorted((folders[1] / "test" / "a").glob("*.png"))[:2]]


@pytest.fixture(scope="module")
def record(folders, pictures, tmp_path_factory):
    path = tmp_path_factory.mktemp("records") / "record.jsonl"
    words = ["--model", str(folders[0]), "--n0", "5", "--n", "40", "--alpha", "0.1", "--seed", "3"]
    for picture in pictures:
        assert main(["certify", picture, *words, "--output", str(path)]) == 0
    return path


def test_records_are_those_of_the_pipeline(folders, pictures, record):
    pipe = NoisedDiffusionClassifierPipeline.from_pretrained(folders[0])
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert [line["image"] for line in lines] == pictures and {line["model"] for line in lines} == {str(folders[0])}
    for line in lines:
        with PIL.Image.open(line["image"]) as image:
            certificate = pipe.certify(image, n0=5, n=40, alpha=0.1, seed=3)
        assert json.loads(json.dumps(certificate.to_dict())) == line["certificate"]


def test_radii_stop_a_certificate_early(folders, pictures, tmp_path, capsys):
    output = tmp_path / "record.jsonl"
    words = ["--model", str(folders[0]), "--radii", "0.1", "0.05", "--alpha", "0.1", "--n", "2000"]
    assert main(["certify", *pictures, *words, "--output", str(output)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in printed[:2]] == pictures and printed[2] == f"recorded in {output}"
    certificates = [json.loads(line)["certificate"] for line in output.read_text().splitlines()]
    assert len(certificates) == 2 and {certificate["bound"] for certificate in certificates} == {"mixture"}
    for line, certificate in zip(printed, certificates, strict=False):
        label = certificate["label"]
        assert ("abstained" if label is None else f"class {label} ({'abc'[label]}), l2 radius") in line


def test_quiet_shows_no_progress_bar(folders, pictures, tmp_path, monkeypatch, capsys):
    """The pipeline's own; those of libraries that are imported already do not change."""
    for name in QUIET:
        monkeypatch.setenv(name, "0")
    words = ["certify", pictures[0], "--model", str(folders[0]), "--n", "20", "--output", str(tmp_path / "r.jsonl")]
    shown = []
    for more in ([], ["--quiet"]):
        assert main([*words, *more]) == 0
        shown.append("/120 [" in capsys.readouterr().err)
    assert shown == [True, False]


def test_records_verify_and_replay(record, capsys):
    assert main(["verify", str(record)]) == 0 and capsys.readouterr().out.count("sound") == 2
    assert main(["replay", str(record)]) == 0 and capsys.readouterr().out.count("again") == 2
    assert main(["replay", str(record), "--count", "1"]) == 0 and capsys.readouterr().out.count("again") == 1


def test_moved_images_are_found_and_others_are_noticed(record, folders, pictures, tmp_path, capsys):
    one = tmp_path / "one.jsonl"
    one.write_text(record.read_text().splitlines()[0] + "\n")
    assert main(["replay", str(one), "--images", str(folders[1] / "test" / "b")]) == 1
    assert "FLAWED" in capsys.readouterr().out
    line = json.loads(one.read_text())
    one.write_text(json.dumps({**line, "image": "gone/0.png", "model": "./gone"}))
    assert main(["replay", str(one)]) == 1 and "`--model` must be an existing folder" in capsys.readouterr().out
    words = ["--images", str(folders[1] / "test" / "a"), "--model", str(folders[0])]
    assert main(["replay", str(one), *words]) == 0


def test_a_forged_record_fails(record, tmp_path, capsys):
    forged = json.loads(record.read_text().splitlines()[0])
    forged["certificate"]["radius"] = 1.0
    path = tmp_path / "forged.jsonl"
    path.write_text(json.dumps(forged) + "\nno record\n")
    assert main(["verify", str(path)]) == 1
    assert main(["replay", str(path)]) == 1
    assert capsys.readouterr().out.count("FLAWED") == 4


@pytest.mark.parametrize(
    "words, said",
    [
        (["--sigma", "0"], "`--sigma` must be a noise level above 0 (pixel units), got 0"),
        (["--sigma", "-1"], "`sigma` must be"),
        (["--n", "0"], "`--n` must be 1 or more, got 0"),
        (["--alpha", "2"], "alpha"),
        (["--batch-size", "many"], "`--batch-size` must be a whole number"),
        (["--radii", "nan"], "`--radii` must be finite"),
        (["--model", "./nowhere"], "`--model` must be an existing folder or a Hub id, got ./nowhere"),
        (["--output", "nowhere/record.jsonl"], "`--output` must exist, got nowhere"),
        (["nowhere.png"], "unrecognized arguments"),
    ],
)
def test_options_are_refused_before_any_work(words, said, folders, pictures, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["certify", pictures[0], "--model", str(folders[0]), *words])
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_a_file_that_is_no_image_is_an_error(folders, tmp_path, capsys):
    (tmp_path / "text.png").write_text("no image")
    words = ["--model", str(folders[0]), "--output", str(tmp_path / "record.jsonl")]
    assert main(["certify", str(tmp_path / "text.png"), *words]) == 1
    error = capsys.readouterr().err
    assert "`IMAGE` must be an image file" in error and error.count("\n") == 1
    assert not (tmp_path / "record.jsonl").exists()

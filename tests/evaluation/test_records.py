import json
import os
from contextlib import contextmanager

import pytest

from diffusers_ndc import Certificate
from diffusers_ndc.common.json import differences
from diffusers_ndc.evaluation.records import RecordWriter, read_records, read_run, write_run


def record_of(index, seconds=1.5):
    certificate = Certificate.from_counts({1: 10}, {1: 98, 2: 2}, 0.25, 0.001, image_hash=f"{index:032x}")
    return {
        "index": index,
        "image_hash": certificate.image_hash,
        "label": 1,
        "seconds": seconds,
        "certificate": certificate.to_dict(),
    }


@contextmanager
def full_disk(size):
    """No file can grow beyond `size` bytes."""
    resource = pytest.importorskip("resource", reason="needs Unix")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_is_written_is_read_and_verifies(tmp_path):
    folder = tmp_path / "new" / "run"
    with RecordWriter(folder, process_index=3) as writer:
        for index in (7, 2):
            writer.write(record_of(index))
            assert index in read_records(folder)  # already on the disk, before the file is closed
    (path,) = folder.iterdir()
    stamp, process, pid = path.stem.split("-")
    assert path == writer.path and path.suffix == ".jsonl" and len(stamp) == 22
    assert (process, pid) == ("003", str(os.getpid()))
    records = read_records(folder)
    assert list(records) == [2, 7]
    assert records[2] == json.loads(json.dumps(record_of(2)))
    assert Certificate.from_dict(records[7]["certificate"]).verify()


def test_a_file_that_is_there_is_never_opened_again(tmp_path):
    with RecordWriter(tmp_path) as writer:
        writer.write(record_of(0))
    before = writer.path.read_text()
    with pytest.raises(FileExistsError):
        writer.__enter__()
    assert writer.path.read_text() == before


def test_a_torn_last_line_is_skipped_silently(tmp_path, recwarn):
    whole, torn = json.dumps(record_of(0)), json.dumps(record_of(1))
    path = tmp_path / "20260101T000000-000-1.jsonl"
    for length in range(len(torn)):
        path.write_text(f"{whole}\n{torn[:length]}")
        assert list(read_records(tmp_path)) == [0]
    path.write_text(f"{whole}\n{torn}")  # nothing but the end of the line is missing
    assert list(read_records(tmp_path)) == [0, 1]
    assert not recwarn


@pytest.mark.parametrize("damage", ['{"index": 1, "la{"index": 2}', "[1]", '{"label": 1}', '{"index": "1"}', "\0\0\0"])
def test_a_damaged_line_before_the_last_is_counted_in_a_warning(tmp_path, damage):
    lines = [json.dumps(record_of(0)), damage, json.dumps(record_of(3)), damage, json.dumps(record_of(4))]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.warns(UserWarning, match=r"2 damaged lines are ignored: \[2, 4\]"):
        assert list(read_records(tmp_path)) == [0, 3, 4]


def test_of_doubled_records_the_first_counts(tmp_path):
    (tmp_path / "20260101T000000-000-9.jsonl").write_text(json.dumps(record_of(0, seconds=1.0)) + "\n")
    (tmp_path / "20260101T000001-000-1.jsonl").write_text(
        "".join(json.dumps(record_of(index, seconds)) + "\n" for index, seconds in ((0, 2.0), (1, 3.0), (1, 4.0)))
    )
    assert {index: record["seconds"] for index, record in read_records(tmp_path).items()} == {0: 1.0, 1: 3.0}


def test_a_failure_gives_way_to_a_success_and_never_the_other_way(tmp_path):
    failures = [{"index": index, "failed": f"unreadable {index}"} for index in range(3)]
    lines = [failures[0], failures[1], record_of(0), record_of(2), failures[2], {"index": 1, "failed": "again"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    records = read_records(tmp_path)
    assert records[0]["label"] == records[2]["label"] == 1 and "failed" not in {**records[0], **records[2]}
    assert records[1] == failures[1]


def test_no_folder_has_no_records(tmp_path):
    assert read_records(tmp_path / "none") == read_records(tmp_path) == {}


def test_settings_are_written_all_or_nothing(tmp_path):
    folder = tmp_path / "run"
    settings = {"sigma": 0.25, "radii": (0.0, 0.5), "id2label": {0: "a"}, "limit": None}
    write_run(folder, {"sigma": 1.0})
    write_run(folder, settings)
    assert read_run(folder) == {"sigma": 0.25, "radii": [0.0, 0.5], "id2label": {"0": "a"}, "limit": None}
    with pytest.raises(TypeError):
        write_run(folder, {"sigma": 0.5, "output": folder})
    assert read_run(folder)["sigma"] == 0.25
    assert [path.name for path in folder.iterdir()] == ["run.json"]

    os.remove(folder / "run.json")
    (folder / "run.json").mkdir()  # nothing can be put in its place
    with pytest.raises(OSError):
        write_run(folder, settings)
    assert [path.name for path in folder.iterdir()] == ["run.json"]


def test_a_full_disk_stops_with_an_error_and_harms_nothing_written(tmp_path):
    write_run(tmp_path, {"sigma": 0.25})
    size = len(json.dumps(record_of(0)))
    with full_disk(size + size // 2), pytest.raises(OSError, match="too large"):
        with RecordWriter(tmp_path) as writer:
            writer.write(record_of(0))
            writer.write(record_of(1))
    assert list(read_records(tmp_path)) == [0]
    with full_disk(size), pytest.raises(OSError, match="too large"):
        write_run(tmp_path, {"sigma": 0.5, "note": "long" * size})
    assert read_run(tmp_path) == {"sigma": 0.25}


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        (None, FileNotFoundError, "which has no run.json"),
        ('{"sigma": 0.2', ValueError, "must be JSON"),
        ("[1]", ValueError, "must be a JSON object .*got a list"),
    ],
)
def test_run_json_must_exist_and_be_an_object(tmp_path, text, error, match):
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(error, match=match):
        read_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        read_run(tmp_path / "none")


def test_differences_name_each_setting_with_both_values(tmp_path):
    settings = {"sigma": 0.25, "radii": (0.0, 0.5), "id2label": {0: "a"}, "versions": {"torch": "2.6", "numpy": "2.0"}}
    write_run(tmp_path, settings)
    assert differences(settings, read_run(tmp_path)) == {}
    other = {**settings, "sigma": 0.5, "limit": 3, "versions": {"torch": "2.13", "numpy": "2.0"}}
    assert differences(settings, other) == {
        "limit": (None, 3),
        "sigma": (0.25, 0.5),
        "versions.torch": ("2.6", "2.13"),
    }
    assert differences(other, settings)["sigma"] == (0.5, 0.25)

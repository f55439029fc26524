"""The labelled images of a run, from the kinds of data sets that people have."""

import shutil

import numpy as np
import PIL.Image
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value

from diffusers_ndc.evaluation.data import FAULTS, find_columns, load_labelled_images
from diffusers_ndc.evaluation.settings import Settings


NAMES = ["a", "b", "c"]


def picture(seed):
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path):
    """Twelve images in folders by class."""
    for name in NAMES:
        (tmp_path / "data" / "test" / name).mkdir(parents=True)
        for number in range(4):
            picture(ord(name) + number).save(tmp_path / "data" / "test" / name / f"{number}.png")
    return tmp_path / "data"


@pytest.fixture
def parquet(tmp_path):
    """The same images and labels as a Parquet file, with other column names."""
    features = Features({"id": Value("string"), "digit": ClassLabel(names=NAMES), "picture": Image()})
    rows = [(name, number) for name in NAMES for number in range(4)]
    pictures = [picture(ord(name) + number) for name, number in rows]
    values = {"id": [str(row) for row in rows], "digit": [name for name, _ in rows], "picture": pictures}
    (tmp_path / "parquet" / "data").mkdir(parents=True)
    Dataset.from_dict(values, features=features).to_parquet(tmp_path / "parquet" / "data" / "test-0.parquet")
    return tmp_path / "parquet"


def load(dataset, **settings):
    return load_labelled_images(Settings("m", str(dataset), "o", **settings))


def pixels(data):
    return [np.asarray(data.image(number)).tolist() for number in range(len(data))]


def test_a_folder_and_a_parquet_file_and_a_stream_give_the_same(folder, parquet):
    one, two, three = load(folder), load(parquet), load(parquet, streaming=True)
    assert one.indices == two.indices == three.indices == list(range(12))
    assert pixels(one) == pixels(two) == pixels(three)
    labels = [0] * 4 + [1] * 4 + [2] * 4
    assert one.labels(3, None) == two.labels(3, None) == three.labels(3, None) == labels
    assert two.content_hash() == three.content_hash()


def test_images_are_chosen_by_index_then_skip_then_limit(parquet, tmp_path):
    file = tmp_path / "indices.txt"
    file.write_text("7\n3\n11\n0\n5\n")
    everything = pixels(load(parquet))
    for settings, expected in [
        ({"skip": 5}, [0, 5, 10]),
        ({"skip": 5, "limit": 2}, [0, 5]),
        ({"limit": 3}, [0, 1, 2]),
        ({"indices_file": str(file)}, [7, 3, 11, 0, 5]),
        ({"indices_file": str(file), "skip": 2, "limit": 2}, [7, 11]),
    ]:
        for streaming in (False, True):
            chosen = load(parquet, streaming=streaming, **settings)
            assert chosen.indices == expected
            assert pixels(chosen) == [everything[index] for index in expected]


def test_a_stream_is_read_no_further_than_the_last_image(parquet, monkeypatch):
    read = []
    decode = Dataset.from_list

    def watch(rows, **settings):
        read.extend(rows)
        return decode(rows, **settings)

    monkeypatch.setattr(Dataset, "from_list", watch)
    assert len(load(parquet, streaming=True, limit=2)) == len(read) == 2


def test_the_hash_is_that_of_the_content(folder, parquet, tmp_path):
    original = load(folder).content_hash()
    shutil.copytree(folder, tmp_path / "copy")
    assert load(tmp_path / "copy").content_hash() == original
    assert load(folder, limit=5).content_hash() != original
    picture(999).save(tmp_path / "copy" / "test" / "b" / "2.png")
    assert load(tmp_path / "copy").content_hash() != original


def test_classes_are_matched_by_name_where_both_sides_have_names(folder):
    data = load(folder)
    assert data.labels(4, {0: "c", 1: "x", 2: "b", 3: "a"}) == [3] * 4 + [2] * 4 + [0] * 4
    with pytest.raises(ValueError, match=r"\['cat', 'dog'\], got \['a', 'b', 'c'\]"):
        data.labels(2, {0: "cat", 1: "dog"})
    with pytest.raises(ValueError, match=r"0 to 1, got \['a', 'b', 'c'\]"):
        data.labels(2, None)


def test_plain_numbers_are_classes_by_number(tmp_path):
    def with_labels(labels):
        rows = {"image": [picture(0)] * len(labels), "label": labels}
        folder = tmp_path / f"{len(labels)}-{max(labels[:2])}"
        folder.mkdir()
        features = Features({"image": Image(), "label": Value("int64")})
        Dataset.from_dict(rows, features=features).to_parquet(folder / "test.parquet")
        return load(folder)

    assert with_labels([2, 0, -1, None]).labels(3, {0: "a", 1: "b", 2: "c"}) == [2, 0, None, None]
    with pytest.raises(ValueError, match=r"'a', 'b', 'c'\], got \[7\]"):
        with_labels([2, 7]).labels(3, {0: "a", 1: "b", 2: "c"})
    with pytest.raises(ValueError, match="label"):
        with_labels([-1, -1]).labels(3, None)


def test_an_image_that_cannot_be_read_fails_on_its_turn(folder):
    (folder / "test" / "b" / "1.png").write_bytes(b"no image")
    data = load(folder)
    (folder / "test" / "c" / "0.png").unlink()
    assert len(data.content_hash()) == 32
    faulty = []
    for number in range(len(data)):
        try:
            data.image(number)
        except FAULTS:
            faulty.append(number)
    assert faulty == [5, 8]


def test_columns_that_are_not_there_are_listed(parquet):
    with pytest.raises(ValueError, match=r"`--image-column` .*\['id', 'digit', 'picture'\], got 'img'"):
        load(parquet, image_column="img")
    with pytest.raises(ValueError, match=r"`--label-column` .*\['digit'\], got 'id'"):
        load(parquet, label_column="id")
    assert pixels(load(parquet, image_column="picture", label_column="digit")) == pixels(load(parquet))
    with pytest.raises(ValueError, match="`--label-column` must be given if no column is one by its type"):
        find_columns(Features({"picture": Image(), "id": Value("string")}))


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_of_the_usual_names_need_no_renaming(folder, streaming):
    assert [load(folder, streaming=streaming).image(number) for number in range(3)] == [
        load(folder).image(number) for number in range(3)
    ]


@pytest.mark.parametrize("streaming", [False, True])
def test_choices_that_do_not_exist_raise(parquet, tmp_path, streaming):
    def check_raises(match, dataset=parquet, **settings):
        with pytest.raises(ValueError, match=match):
            load(dataset, streaming=streaming, **settings)

    check_raises("`--limit` must be at most 12, .* got 13", limit=13)
    check_raises("train", split="train")
    check_raises("which is no folder", dataset=tmp_path / "nowhere")
    file = tmp_path / "indices.txt"
    for text, match in [("3\n12\n", "12"), ("1\n1\n", "more than once"), ("one\n", "whole number"), ("", "whole")]:
        file.write_text(text)
        check_raises(match, indices_file=str(file))
    with pytest.raises(OSError):
        load(parquet, indices_file=str(tmp_path / "none.txt"))

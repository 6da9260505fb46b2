"""Make the embedded Fashion-MNIST subset again from the original files.

    python -m rebasin_utils.embedded.make FOLDER_WITH_THE_FOUR_GZ_FILES [OUTPUT.npz]

The subset is the first 1,000 training images of every class, in the order of the original file,
and the whole test split. Without OUTPUT the command only compares: it prints the checksums of what
it made and exits with 1 where they differ from those of the file that the package carries.
"""

from __future__ import annotations

import gzip
import hashlib
import sys
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("fashion_mnist_10k.npz")
PER_CLASS = 1_000


def read_idx(path: Path) -> np.ndarray:
    """One gzipped IDX file of unsigned bytes (the MNIST format) as an array."""
    raw = gzip.decompress(path.read_bytes())
    dims = raw[3]
    shape = np.frombuffer(raw, ">u4", count=dims, offset=4).astype(int)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape)


def subset(folder: Path) -> dict[str, np.ndarray]:
    """The four arrays of the subset; images uint8 [n, 28, 28], labels uint8 [n]."""
    images = read_idx(folder / "train-images-idx3-ubyte.gz")
    labels = read_idx(folder / "train-labels-idx1-ubyte.gz")
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == c)[:PER_CLASS] for c in range(10)]))
    return {
        "train_images": images[chosen],
        "train_labels": labels[chosen],
        "test_images": read_idx(folder / "t10k-images-idx3-ubyte.gz"),
        "test_labels": read_idx(folder / "t10k-labels-idx1-ubyte.gz"),
    }


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
    made = subset(Path(arguments[0]))
    if len(arguments) == 2:
        np.savez_compressed(arguments[1], **made)
    with np.load(FILE) as carried:
        expected = checksums(dict(carried))
    same = checksums(made) == expected
    for name, digest in checksums(made).items():
        print(f"{digest}  {name}  {'same' if digest == expected[name] else 'DIFFERENT'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

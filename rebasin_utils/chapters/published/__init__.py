"""The papers' published tables, as CSV files."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from rebasin_utils.errors import InputError

#: (model, width, data set) -> the table of its sparse runs (Adnan et al. 2025, Tables 5–14).
GRIDS = {
    ("resnet20", 1, "cifar10"): "ws_table3_resnet20_w1_cifar10",
    ("resnet20", 4, "cifar10"): "ws_table4_resnet20_w4_cifar10",
    ("resnet20", 8, "cifar10"): "icml_table7_resnet20_w8_cifar10",
    ("resnet20", 16, "cifar10"): "icml_table8_resnet20_w16_cifar10",
    ("resnet20", 1, "cifar100"): "icml_table11_resnet20_w1_cifar100",
    ("resnet20", 4, "cifar100"): "icml_table12_resnet20_w4_cifar100",
    ("resnet20", 8, "cifar100"): "icml_table13_resnet20_w8_cifar100",
    ("resnet20", 16, "cifar100"): "icml_table14_resnet20_w16_cifar100",
    ("vgg11", 1, "cifar10"): "ws_table5_vgg11_w1_cifar10",
}

#: The same of ImageNet: single runs, of top-1 and top-5.
SINGLE_RUNS = {("resnet50", 1, "imagenet"): "icml_table10_resnet50_w1_imagenet"}

#: What is quoted beside a net that the paper has no table of.
_ELSE = ("resnet20", 1, "cifar10")


class Grid(NamedTuple):
    """A published table of sparse runs: whose it is, in words, and its mean accuracies in %.

    means: indexed by sparsity and the paper's rewind epoch, a column a method.
    """

    net: str
    means: pd.DataFrame


def table(name: str) -> pd.DataFrame:
    """One of the published tables, as shipped in `chapters/published/<name>.csv`.

    Raises:
        InputError: when there is none of that name.
    """
    folder = Path(__file__).parent
    file = folder / f"{name}.csv"
    if not file.is_file():
        known = sorted(f.name.removesuffix(".csv") for f in folder.iterdir() if f.suffix == ".csv")
        raise InputError(f"published table = {name!r}: choose one of {', '.join(known)}")
    with file.open() as text:
        return pd.read_csv(text)


def grid(model: str, width: int, dataset: str, metric: str = "top1") -> Grid:
    """The published sparse runs of that net on that data set, or else of ResNet20×1 on CIFAR-10.

    metric: "top5" is published of ImageNet only.
    """
    names = {**GRIDS, **SINGLE_RUNS}
    rows = table(names.get((model, width, dataset), names[_ELSE]))
    if "metric" in rows:
        rows = rows[rows["metric"] == metric]
    first = rows.iloc[0]
    means = rows.pivot_table("mean", ["sparsity", "rewind_epoch"], "method")
    means.columns = means.columns.str.lower()
    return Grid(f"{first['model']}×{first['width']}, {first['dataset']}", means)

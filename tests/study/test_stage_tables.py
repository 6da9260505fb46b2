"""The tables of the stages: what a stored study says is what was stored."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from rebasin_utils.errors import InputError
from rebasin_utils.nets import masks
from rebasin_utils.study.stages import (
    connectivity,
    dense,
    diversity,
    early_matching,
    imp,
    matching,
    overlaps,
    plane,
    segment,
    sparse,
)
from rebasin_utils.study.study import Study
from rebasin_utils.symmetry.permutation import permute
from rebasin_utils.training.evaluate import evaluate


def test_a_net_has_the_same_accuracy_in_the_table_and_at_the_end_of_its_path(finished):
    """One test set."""
    table = connectivity.paths(finished)
    for role, alpha in (("A", 0.0), ("B", 1.0)):
        for seed in range(2):
            net = finished.record(dense.net(finished.settings, role, seed))["metrics"]
            rows = table[(table["alpha"] == alpha) & (table["seed"] == seed)]
            plain = rows[rows["path"].isin(["unmatched", "matched"])]["accuracy"]
            assert plain.tolist() == pytest.approx(2 * [net["test_accuracy"]])


def test_the_path_table_holds_what_was_stored(finished):
    table = connectivity.paths(finished)
    names = {("unmatched", "none"): "unmatched", ("matched", "none"): "matched"}
    names |= {(path, "repair"): f"{path}_repair" for path, _ in list(names)}
    assert set(table["path"]) == set(names.values())
    for split in ("test", "train"):
        table = connectivity.paths(finished, split)
        for seed in range(2):
            metrics = finished.record(connectivity.between(finished.settings, seed))["metrics"]
            for path in (p for p in metrics["paths"] if p["split"] == split):
                name = names[path["path"], path["correction"]]
                rows = table[(table["path"] == name) & (table["seed"] == seed)]
                assert rows["alpha"].tolist() == metrics["alphas"]
                assert rows["accuracy"].tolist() == [p["accuracy"] for p in path["points"]]
    table = connectivity.paths(finished)
    middle = connectivity.midpoints(finished).set_index("path")
    for path, row in middle.iterrows():
        at = table[(table["path"] == path) & (table["alpha"] == 0.5)]["accuracy"]
        assert row["mean"] == pytest.approx(100 * at.mean())
        assert row["n"] == 2


def test_the_pruning_table_begins_dense_and_only_gets_sparser(finished):
    for role in "AB":
        table = imp.trajectory(finished, role)
        for seed, rows in table.groupby("seed"):
            assert rows["round"].tolist() == [0, 1, 2, 3, 4]
            assert rows["sparsity"].is_monotonic_increasing
            metrics = finished.record(dense.net(finished.settings, role, seed))["metrics"]
            assert rows.iloc[0]["test_accuracy"] == metrics["test_accuracy"]


def test_overlaps_compare_tickets_with_bs_own(finished):
    table = overlaps.table(finished)
    assert len(table) == 2 * 1 * 3
    for seed in range(2):
        own = imp.mask(finished, seed, 0.5, role="B")
        expected = masks.overlap(imp.mask(finished, seed, 0.5), own)
        row = table[(table["seed"] == seed) & (table["kind"] == "mask")]
        assert row["overlap"].item() == expected
        pi = matching.permutation(finished, seed)
        moved = permute(finished.spec, pi, imp.mask(finished, seed, 0.5))
        row = table[(table["seed"] == seed) & (table["kind"] == "permuted")]
        assert row["overlap"].item() == masks.overlap(moved, own)
    assert table["overlap"].between(0.3, 0.9).all()


def test_a_barrier_is_that_of_its_path(finished):
    table = connectivity.barriers(finished)
    assert len(table) == 2 * 2 * 4  # splits, pairs, paths
    for row in table.itertuples():
        path = connectivity.paths(finished, row.split)
        at = path[(path["path"] == row.path) & (path["seed"] == row.seed)]
        line = at["loss"].iloc[0] + at["alpha"] * (at["loss"].iloc[-1] - at["loss"].iloc[0])
        assert row.loss == pytest.approx((at["loss"] - line).max())


def test_the_segments_begin_and_end_in_the_nets_that_their_kind_names(finished):
    table = segment.barriers(finished)
    # 2 pairs x (4 rounds + 2 rewind epochs + 2 ways to B at one of them) x 2 corrections
    assert len(table) == 2 * (4 + 2 + 2) * 2
    assert set(table["kind"]) == set(segment.SEGMENTS)
    assert (table[["loss", "error"]] >= 0).all(axis=None)
    s = finished.settings
    node = segment.between(s, "dense-lth", 1, 0.5, 1)
    assert node.parents == (dense.net(s, "A", 1), sparse.one(s, "lth", 0.5, 1, 1))
    points = finished.record(node)["metrics"]["paths"][0]["points"]
    for point, end in ((points[0], node.parents[0]), (points[-1], node.parents[1])):
        expected = finished.record(end)["metrics"]["test_accuracy"]
        assert point["accuracy"] == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("samples", [1000, 300])
def test_the_ends_of_paths_are_what_measuring_them_gives(finished, tmp_path, samples):
    """Where all test images are measured on, their own records are taken."""
    store = shutil.copytree(finished.store.root, tmp_path / "store")
    settings = finished.settings.with_values(**{"paths.samples": samples})
    anew = Study(settings, store)
    some = [segment.between(settings, kind, 0, 0.5, 1) for kind in ("dense-lth", "lth-naive")]
    anew.compute(some)
    anew.compute([connectivity.between(settings, 0)])
    test = finished.split("test")
    images = test.head(samples)
    for node in (*some, connectivity.between(settings, 0)):
        paths = anew.record(node)["metrics"]["paths"]
        ends = evaluate(anew.model, [anew.state(parent) for parent in node.parents[:2]], images)
        plain = [p for p in paths if p.get("path") != "matched" and p.get("split") != "train"]
        assert [p["correction"] for p in plain] == ["none", "repair"]
        for path in plain:
            found = path["points"][0], path["points"][-1]
            assert found == tuple({"accuracy": e.accuracy, "loss": e.loss} for e in ends)
        if samples == len(test):
            (twin,) = (n for n in finished.nodes(node.stage) if n.key.label == node.key.label)
            assert paths == finished.record(twin)["metrics"]["paths"]


def test_on_the_way_from_lth_to_permuted_lth_is_permuted_too(finished):
    s = finished.settings
    node = segment.between(s, "lth-permuted", 0, 0.5, 1)
    first, second, matched = node.parents
    moved = permute(finished.spec, finished.tensors(matched), finished.state(first))
    mask = permute(finished.spec, finished.tensors(matched), imp.mask(finished, 0, 0.5))
    for name, kept in mask.items():
        for state in (moved, finished.state(second)):
            assert not state[name][~kept].any()
    points = finished.record(node)["metrics"]["paths"][0]["points"]
    for point, end in ((points[0], first), (points[-1], second)):
        expected = finished.record(end)["metrics"]["test_accuracy"]
        assert point["accuracy"] == pytest.approx(expected, abs=2e-4)


def test_early_matching_is_held_against_the_runs_of_the_grid(finished):
    table = early_matching.table(finished)
    results = finished.results().set_index(["method", "sparsity", "rewind_epoch", "seed"])
    assert table["method"].value_counts().to_dict() == {"permuted": 4, "naive": 2, "lth": 2}
    for row in table.itertuples():
        if row.method == "permuted" and row.match_epoch == 1:
            early, final = (
                finished.tensors(matching.of_pair(finished.settings, row.seed, epoch=epoch))
                for epoch in (1, None)
            )
            same = np.concatenate([(early[name] == final[name]).numpy() for name in final])
            assert 0 < row.agreement < 1
            assert row.agreement == pytest.approx(same.mean())
            continue
        cell = (row.method, row.sparsity, 1, row.seed)
        assert row.test_accuracy == results.loc[cell, "test_accuracy"]
        assert row.method != "permuted" or row.agreement == 1


def test_the_ensembles_of_every_method_are_summed_up(finished):
    table = diversity.table(finished)
    assert len(table) == 5  # two pairs make one ensemble
    for row in table.itertuples():
        found = finished.record(diversity.ensemble(finished.settings, row.method, row.seed))[
            "metrics"
        ]
        assert row.accuracy == pytest.approx(50 * sum(found["accuracies"]))
        assert row.disagreement == found["pairs"][0]["disagreement"]
        assert row.n == 2


def test_the_bill_counts_what_the_owner_of_b_trains(finished):
    table = early_matching.bill(
        finished
    )  # 2 epochs, k = 1, IMP of 1 epoch a round, 4 rounds to 50%
    assert table["mask"].tolist() == ["A's, naive", *["A's, permuted"] * 2, "B's own, by IMP"]
    assert table["match_epoch"].tolist()[1:3] == [1, 2]
    assert table["epochs"].tolist() == [1 + 1, 1 + 1, 2 + 1, 2 + 4 + 1]


def test_the_planes_table_holds_its_grid_its_path_and_its_models(finished):
    (node,) = finished.nodes("plane")
    metrics = finished.record(node)["metrics"]
    table = plane.table(metrics).set_index("what")
    grid = table.loc["grid"]
    assert grid["x"].unique().tolist() == grid["y"].unique().tolist() == metrics["ticks"]
    assert np.array_equal(
        grid["accuracy"].to_numpy().reshape(len(metrics["ticks"]), -1), metrics["accuracy"]
    )
    assert {0.0, 1.0} <= set(metrics["ticks"])  # with the nets themselves
    at = grid[(grid["x"] == 1) & (grid["y"] == 0)]["accuracy"].item()
    run = sparse.one(finished.settings, "permuted", 0.5, 1, 0)
    assert at == pytest.approx(finished.record(run)["metrics"]["test_accuracy"], abs=2e-4)
    assert set(table.index) == {"grid", "path", *metrics["models"]}
    for name, where in metrics["models"].items():
        assert table.loc[name, ["x", "y", "beside"]].tolist() == where


def test_the_path_on_the_plane_is_the_permuted_run_from_its_start_to_its_end(finished):
    (node,) = finished.nodes("plane")
    metrics = finished.record(node)["metrics"]
    path = metrics["path"]
    assert len(path) == 1 + sparse.one(finished.settings, "permuted", 0.5, 1, 0).epochs
    assert path[-1] == pytest.approx(metrics["models"]["permuted"], abs=1e-6)
    assert path[-1] == pytest.approx([1, 0, 0], abs=1e-6)
    assert path[0] != pytest.approx([1, 0, 0], abs=1e-3)


def test_what_was_not_computed_is_said_and_not_computed(tiny, tmp_path):
    study = Study(tiny, tmp_path / "store")
    for table in (
        connectivity.paths, connectivity.variances, connectivity.barriers, connectivity.midpoints,
        segment.barriers, imp.trajectory, overlaps.table, early_matching.table, diversity.table,
    ):  # fmt: skip
        with pytest.raises(InputError, match="is not computed yet: run the study first"):
            table(study)
    assert not (tmp_path / "store").exists()

"""A study gives one table, however it was run, stopped, damaged or extended."""

from __future__ import annotations

import copy
import pickle
import shutil
import threading

import pandas as pd
import pytest
import torch
from torch import nn

from rebasin_utils import data, masks, models, runner, study
from rebasin_utils.errors import InputError
from rebasin_utils.permutation import PermutationSpec, permute, random_permutation
from rebasin_utils.plan import STAGES, derive_seed
from rebasin_utils.settings import METHODS
from rebasin_utils.store import RECORD, TENSORS
from rebasin_utils.study import Study
from rebasin_utils.training import Job, evaluate, train


def copied(finished: Study, tmp_path) -> Study:
    """The finished study with a store of its own."""
    shutil.copytree(finished.store.root, tmp_path / "copy")
    return Study(finished.settings, tmp_path / "copy")


def run(a_study: Study, **options) -> int:
    return runner.run(a_study, quiet=True, **{"workers": 1} | options)


def bare(table: pd.DataFrame) -> pd.DataFrame:
    """Without the clock."""
    return table.drop(columns="seconds")


def assert_same_results(first: Study, second: Study) -> None:
    """All runs, all paths and all permutations, to the last digit."""
    pd.testing.assert_frame_equal(bare(first.results()), bare(second.results()), check_exact=True)
    for stage in STAGES:
        for node in first.plan.nodes(stage):
            one, two = first.store.get(node.key), second.store.get(node.key)
            assert one.record.get("metrics") == two.record.get("metrics")
            assert same(one.tensors, two.tensors)


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def contents(a_study: Study) -> dict[str, tuple[bytes, int]]:
    """Every artifact's files: bytes and time of writing."""
    return {
        str(p.relative_to(a_study.store.root)): (p.read_bytes(), p.stat().st_mtime_ns)
        for p in a_study.store.root.rglob("*")
        if p.name in (RECORD, TENSORS)
    }


# -------------------------------------------------------------------------- one table


def test_one_worker_and_two_give_the_same_table_to_the_last_digit(finished, tmp_path):
    two = Study(finished.settings, tmp_path / "two")
    assert run(two, workers=2) == len(contents(finished)) // 2
    assert_same_results(finished, two)


def test_a_convolutional_net_does_not_depend_on_the_number_of_threads(tiny, tmp_path):
    settings = tiny.with_values(model="resnet8", rewind_epochs=(1,), sparsities=(), methods=())
    states = []
    for threads in (1, 2):
        a_study = Study(settings, tmp_path / str(threads))
        torch.set_num_threads(threads)
        try:
            states.append(a_study.state(a_study.plan.rewind("A", 0, 1)))
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(1)
    assert same(*states)


def test_a_second_run_computes_nothing(finished):
    before = contents(finished)
    assert run(finished) == 0
    assert run(finished, workers=2) == 0
    assert finished.missing() == []
    assert contents(finished) == before


class Interrupted(Exception):
    """What stops a run in these tests."""


def test_a_study_that_was_interrupted_ends_in_the_same_table(finished, tmp_path):
    stopped = Study(finished.settings, tmp_path / "stopped")
    for stage, epochs in (("dense", 5), ("imp", 7), ("sparse", 11)):
        done = 0

        def progress(n: int, limit: int = epochs) -> None:
            nonlocal done
            done += n
            if done >= limit:
                raise Interrupted

        (lot,) = stopped.plan.tasks(stage, together=True)[:1]
        with pytest.raises(Interrupted):
            stopped.compute(lot, progress)
        for stage_so_far in STAGES:  # whole or absent
            for node in stopped.plan.nodes(stage_so_far):
                assert node.key not in stopped.store or stopped.store.get(node.key)
    run(stopped)
    assert_same_results(finished, stopped)


def test_what_is_asked_for_is_computed_and_nothing_else(finished, tmp_path):
    fresh = Study(finished.settings, tmp_path / "fresh")
    mask = fresh.mask(1, 0.5)
    assert same(mask, finished.mask(1, 0.5))
    plan = fresh.plan
    wanted = {plan.dense("A", 1).key, *(plan.rewind("A", 1, k).key for k in (0, 1))}
    wanted |= {plan.imp("A", 1, r).key for r in plan.rounds if r.number < 4 or not r.full}
    there = {n.key for stage in STAGES for n in plan.nodes(stage) if n.key in fresh.store}
    assert there == wanted


def test_two_that_want_the_same_rounds_at_once_do_not_wait_for_each_other_for_ever(tiny, tmp_path):
    """Two threads with a store each lock like two processes."""
    settings = tiny.with_values(seeds=1, tickets_of_b=False, sparsities=(0.8,), methods=())
    one, two = (Study(settings, tmp_path) for _ in range(2))
    run(one, stages=["dense"])
    nodes = one.plan.nodes("imp")
    assert one.train_images.shape == two.train_images.shape == (1, 14, 14)
    barrier = threading.Barrier(2)

    def want(work, what) -> None:
        barrier.wait(60)
        work(what)

    both = [
        threading.Thread(target=want, args=arguments, daemon=True)
        for arguments in ((one.compute, nodes), (two.load, nodes[-1]))
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert all(one.store.get(node.key) for node in nodes)


# -------------------------------------------------------------------------- damage


def flip_last_byte(path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("stage", STAGES)
def test_a_damaged_artifact_is_set_aside_and_made_again_bit_for_bit(finished, tmp_path, stage):
    damaged = copied(finished, tmp_path)
    node = damaged.plan.nodes(stage)[-1]
    before = contents(damaged)
    flip_last_byte(damaged.store.root / node.key.path / TENSORS)
    with pytest.warns(UserWarning, match="damaged.*computed again"):
        artifact = damaged.load(node)
    expected = finished.load(node)
    assert same(artifact.tensors, expected.tensors)
    assert artifact.record.get("metrics") == expected.record.get("metrics")
    after = contents(damaged)
    for path, content in before.items():
        assert after[path] == content or path.startswith(node.key.path)  # nothing else was made
    aside = [p for p in after if p.startswith(".damaged")]
    assert len(aside) == 2


def test_a_damaged_parent_is_mended_on_the_way(finished, tmp_path):
    damaged = copied(finished, tmp_path)
    first, second, *_ = damaged.plan.nodes("imp")
    flip_last_byte(damaged.store.root / first.key.path / TENSORS)
    shutil.rmtree(damaged.store.root / second.key.path)
    with pytest.warns(UserWarning, match="damaged"):
        damaged.compute(damaged.plan.nodes("imp"))
    assert_same_results(finished, damaged)


def test_an_artifact_without_its_record_is_made_again_by_the_next_run(finished, tmp_path):
    damaged = copied(finished, tmp_path)
    node = damaged.plan.nodes("sparse")[3]
    (damaged.store.root / node.key.path / RECORD).unlink()
    with pytest.warns(UserWarning, match="damaged"):
        assert run(damaged) == 1
    assert run(damaged) == 0
    assert_same_results(finished, damaged)


def test_a_damaged_record_is_left_out_of_the_table_with_a_warning(finished, tmp_path):
    damaged = copied(finished, tmp_path)
    node = damaged.plan.nodes("sparse")[3]
    file = damaged.store.root / node.key.path / RECORD
    file.write_text(file.read_text().replace('"test_accuracy": 0.', '"test_accuracy": 0.9'))
    with pytest.warns(UserWarning, match="damaged"):
        table = damaged.results()
    assert len(table) == len(finished.results()) - 1
    assert node.key.path not in set(table["artifact"])
    assert run(damaged) == 1
    assert_same_results(finished, damaged)


# -------------------------------------------------------------------------- asking for more


@pytest.mark.parametrize(
    ("more", "new"),
    [
        # 2 dense, 4 rewind, 2 x 4 rounds, matchings with B, with its epoch 1 and with a member, 1
        # path; 2 x 5 sparse, 1 early, 3 members; 4 segments to IMP, 2 to LTH; 5 ensembles
        ({"seeds": 3}, 2 + 4 + 8 + 3 + 1 + 10 + 1 + 3 + 4 + 2 + 5),
        # round 2 is there; the branch of 4 nets that lands on 0.3; 2 pairs x (2 x 5 sparse, 1
        # segment to IMP, 2 to LTH)
        ({"sparsities": (0.5, 0.3)}, 4 + 2 * (10 + 1 + 2)),
        # 2 pairs x (10 sparse, 1 early, 3 members, 2 segments, 3 ensembles), 1 plane
        ({"sparse_lr": 0.01}, 2 * (10 + 1 + 3 + 2 + 3) + 1),
    ],
    ids=str,
)
def test_asking_for_more_computes_only_that(finished, tmp_path, more, new):
    old = copied(finished, tmp_path)
    before = contents(old)
    larger = Study(old.settings.with_values(**more), old.store)
    assert run(larger) == new
    after = contents(old)
    assert all(after[path] == content for path, content in before.items())
    assert len(after) == len(before) + 2 * new


def test_a_later_rewind_epoch_costs_its_own_epochs_and_is_the_same_run(tiny, tmp_path):
    settings = tiny.with_values(seeds=1, methods=("naive",), **{"dense.epochs": 4})
    whole = Study(settings.with_values(rewind_epochs=(0, 1, 2)), tmp_path / "whole")
    later = Study(settings.with_values(rewind_epochs=(0, 1)), tmp_path / "later")
    run(whole, stages=["dense"])
    run(later, stages=["dense"])
    epochs = []
    later = Study(whole.settings, later.store)
    node = later.plan.rewind("B", 0, 2)
    assert later.missing(["dense"]) == []
    assert node in later.missing(["rewind"])
    later.compute([node], epochs.append)
    assert sum(epochs) == 2
    assert same(later.state(node), whole.state(node))


# -------------------------------------------------------------------------- what the runs are


@pytest.fixture(scope="module")
def sparse_jobs(finished, tmp_path_factory):
    """The jobs that the sparse runs of pair 0 are really trained from: {(method, k): Job}."""
    fresh = copied(finished, tmp_path_factory.mktemp("sparse"))
    shutil.rmtree(fresh.store.root / "sparse")
    real, given = study.train_many, []

    def recorded(model, jobs, *arguments, **options):
        given.append(jobs)
        return real(model, jobs, *arguments, **options)

    methods, seen = fresh.settings.methods, {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "train_many", recorded)
        for k in fresh.settings.rewind_epochs:
            fresh.compute([fresh.plan.sparse(m, 0.5, k, 0) for m in methods])
            seen |= {(m, k): job for m, job in zip(methods, given[-1], strict=True)}
    return seen


def test_the_methods_are_paired_they_differ_in_their_masks_alone(finished, sparse_jobs):
    for k in (0, 1):
        of_b = [sparse_jobs[m, k] for m in finished.settings.methods if m != "lth"]
        start = finished.state(finished.plan.rewind("B", 0, k))
        assert len(of_b) == 4
        for job in of_b:
            assert same(job.state, start)
        assert len({job.seed for job in sparse_jobs.values()}) == 1
        for i, job in enumerate(of_b):
            assert not any(same(job.mask, other.mask) for other in of_b[:i])


def test_each_method_makes_of_the_ticket_what_its_name_says(finished, sparse_jobs):
    ticket, pi = finished.mask(0, 0.5), finished.permutation(0)
    density = {n: int(m.sum()) for n, m in ticket.items()}
    for k in (0, 1):
        used = {m: sparse_jobs[m, k].mask for m in finished.settings.methods}
        assert same(used["lth"], ticket)
        assert same(used["naive"], ticket)
        assert same(used["permuted"], permute(finished.spec, pi, ticket))
        for control in ("random_mask", "random_permutation"):
            assert {n: int(m.sum()) for n, m in used[control].items()} == density
    assert same(sparse_jobs["random_mask", 0].mask, sparse_jobs["random_mask", 1].mask)
    last = "classifier.weight"  # a permutation moves whole columns of it, a random mask does not
    columns = {m: sorted(sparse_jobs[m, 0].mask[last].sum(0).tolist()) for m in used}
    assert columns["random_permutation"] == columns["permuted"] == columns["naive"]
    assert columns["random_mask"] != columns["naive"]


def test_lth_is_a_with_its_own_mask_and_k_zero_is_the_true_init(finished, sparse_jobs):
    for k in (0, 1):
        assert same(sparse_jobs["lth", k].state, finished.state(finished.plan.rewind("A", 0, k)))
    for role, method in (("A", "lth"), ("B", "naive")):
        init = models.build("mlp", (1, 14, 14), 10, seed=derive_seed("init", role, 0))
        assert same(sparse_jobs[method, 0].state, init.state_dict())
        assert not same(sparse_jobs[method, 1].state, init.state_dict())


def test_a_and_b_have_different_inits_and_data_orders(finished):
    inits = [
        finished.state(finished.plan.rewind(role, seed, 0))["classifier.weight"]
        for role in "AB"
        for seed in range(2)
    ]
    assert all(not torch.equal(a, b) for i, a in enumerate(inits) for b in inits[:i])
    net = finished.model
    a, b = (finished.state(finished.plan.rewind(role, 0, 0)) for role in "AB")
    recipe, images = finished.settings.dense, finished.train_images
    expected = finished.state(finished.plan.dense("B", 0))
    own, others = (derive_seed("data", role, 0) for role in "BA")
    assert same(train(net, Job(b, own), recipe, images).state, expected)
    assert not same(train(net, Job(b, others), recipe, images).state, expected)
    assert not same(a, b)


def test_a_rewind_state_lies_on_the_way_of_its_dense_run(finished):
    node = finished.plan.dense("A", 0)
    job = Job(finished.state(finished.plan.rewind("A", 0, 0)), derive_seed("data", "A", 0))
    recipe, images = finished.settings.dense, finished.train_images
    after_one = train(finished.model, job, recipe, images, until=1)
    assert same(after_one.state, finished.state(finished.plan.rewind("A", 0, 1)))
    assert same(train(finished.model, job, recipe, images).state, finished.state(node))


# -------------------------------------------------------------------------- π keeps the function


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / a.abs().max()).item()


def test_the_matched_a_computes_what_a_does(finished):
    node = finished.plan.dense("A", 0)
    net, state = finished.network(node), finished.state(node)
    matched = copy.deepcopy(net)
    moved = permute(finished.spec, finished.permutation(0), state)
    matched.load_state_dict(moved)
    assert not same(moved, state)
    x = finished.train_images.normalised(finished.train_images.pixels)
    with torch.no_grad():
        assert relative(net(x), matched(x)) <= 1e-5


@pytest.mark.parametrize("name", models.MODELS)
def test_every_permuted_model_computes_the_same_function(name):
    """In eval mode, with batch-norm affine parameters and statistics that are not the defaults."""
    generator = torch.Generator().manual_seed(0)
    net = models.build(name, (3, 32, 32), 10, seed=1).eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                shape = module.weight.shape
                module.weight.copy_(0.5 + torch.rand(shape, generator=generator))
                module.bias.copy_(torch.randn(shape, generator=generator))
                module.running_mean.copy_(torch.randn(shape, generator=generator))
                module.running_var.copy_(0.5 + torch.rand(shape, generator=generator))
    x = torch.randn(4, 3, 32, 32, generator=generator)
    spec = PermutationSpec.trace(net, x)
    pi = random_permutation(spec, generator)
    moved = copy.deepcopy(net)
    moved.load_state_dict(permute(spec, pi, net.state_dict()))
    assert all(
        not torch.equal(p, q)
        for p, q in zip(net.parameters(), moved.parameters(), strict=True)
        if p.ndim > 1
    )
    with torch.no_grad():
        assert relative(net(x), moved(x)) <= 1e-5


def test_the_path_between_a_and_b_ends_in_their_own_accuracies(finished):
    for seed in range(2):
        metrics = finished.load(finished.plan.connectivity(seed)).record["metrics"]
        a, b = (
            finished.load(finished.plan.dense(role, seed)).record["metrics"]["test_accuracy"]
            for role in "AB"
        )
        assert len(metrics["paths"]) == 8
        for path in (p for p in metrics["paths"] if p["split"] == "test"):
            accuracies = [point["accuracy"] for point in path["points"]]
            assert accuracies[0] == pytest.approx(a, abs=2e-4)
            assert accuracies[-1] == pytest.approx(b, abs=2e-4 * (path["correction"] == "repair"))
            assert len(accuracies) == len(metrics["alphas"]) == 5


def test_the_variance_is_restored_by_repair_and_by_nothing_else(finished):
    for seed in range(2):
        metrics = finished.load(finished.plan.connectivity(seed)).record["metrics"]
        for each in metrics["variances"]:
            if each["correction"] == "repair":
                tolerance = {"train": 1e-4, "test": 0.1}  # it was set on training images
                assert each["ratio"] == pytest.approx(1, abs=tolerance[each["split"]])
            else:
                assert each["ratio"] < 0.9


def test_a_retraced_run_is_the_run(finished):
    node = finished.plan.sparse("permuted", 0.5, 0, 1)
    trace = finished.retrace(node)
    assert list(trace) == [0, 1, 2]
    assert same(trace[2], finished.state(node))


def test_the_first_member_of_an_ensemble_is_the_run_of_the_grid(finished):
    for method in ("dense", "imp", "lth", "permuted", "naive"):
        found = finished.load(finished.plan.diversity(method, 0)).record["metrics"]
        node = finished.plan.members(method, 0)[0]
        expected = finished.load(node).record["metrics"]["test_accuracy"]
        assert found["accuracies"][0] == pytest.approx(expected)
        assert len(found["accuracies"]) == 2
        assert len(found["pairs"]) == 1


def test_the_map_is_at_its_models_what_they_are(finished):
    metrics = finished.load(finished.plan.plane(0)).record["metrics"]
    assert metrics["ticks"] == [-1.5, 0.5, 2.5]
    assert metrics["models"]["π(A), masked"] == [0, 0, 0]
    assert metrics["models"]["permuted, trained"] == pytest.approx([1, 0, 0], abs=1e-5)
    assert metrics["models"]["π(A), dense"][1:] == pytest.approx([1, 0], abs=1e-5)
    assert metrics["path"][-1] == pytest.approx([1, 0, 0], abs=1e-5)
    assert len(metrics["accuracy"]) == 3


# -------------------------------------------------------------------------- the table

REQUIRED = {
    "preset", "dataset", "model", "width", "sparsity", "prunable_sparsity", "global_sparsity",
    "method", "rewind_epoch", "seed", "epochs", "test_accuracy", "test_loss", "diverged",
    "seconds", "device",
}  # fmt: skip


def test_the_table_has_a_row_for_every_net_and_every_column_that_was_promised(finished):
    table = finished.results()
    assert set(table.columns) >= REQUIRED
    assert set(table["method"]) == set(METHODS)
    assert table["method"].value_counts().to_dict() == {
        "dense": 4, "imp": 4, "lth": 4, "naive": 4, "permuted": 4, "random_mask": 4,
        "random_permutation": 4,
    }  # fmt: skip
    assert not table.drop(columns="rewind_epoch").isna().any().any()
    assert table["test_accuracy"].between(0.1, 1).all()
    assert (table["seconds"] > 0).all()
    assert set(table["device"]) == {"cpu"}
    assert set(table["preset"]) == {"tiny"}
    sparse = table[table["rewind_epoch"].notna()]
    assert (sparse["epochs"] + sparse["rewind_epoch"] == 2).all()
    assert table["artifact"].is_unique


def test_the_sparsities_of_the_table_can_be_counted_in_the_stored_nets(finished):
    table = finished.results()
    total = sum(p.numel() for p in finished.model.parameters())
    for row in table.itertuples():
        (node,) = [n for s in STAGES for n in finished.plan.nodes(s) if n.key.path == row.artifact]
        state = finished.state(node)
        prunable = [state[n] for n in masks.prunable(finished.model)]
        zeros = sum(int((w == 0).sum()) for w in prunable)
        assert row.prunable_sparsity == pytest.approx(
            zeros / sum(w.numel() for w in prunable), abs=1e-9
        )
        assert row.global_sparsity == pytest.approx(zeros / total, abs=1e-9)
        assert row.prunable_sparsity == pytest.approx(row.sparsity, abs=1e-5)


def test_the_accuracies_of_the_table_are_those_of_the_stored_nets(finished):
    for stage in ("dense", "imp", "sparse"):
        node = finished.plan.nodes(stage)[-1]
        record = finished.load(node).record["metrics"]
        (metrics,) = evaluate(finished.model, [finished.state(node)], finished.test_images)
        assert (record["test_accuracy"], record["test_loss"]) == metrics


def test_the_table_of_an_empty_store_has_its_columns_and_no_rows(tiny, tmp_path):
    table = Study(tiny, tmp_path / "empty").results()
    assert len(table) == 0
    assert set(table.columns) >= REQUIRED


def test_the_table_outlives_parquet(finished, tmp_path):
    finished.results().to_parquet(tmp_path / "results.parquet")
    again = pd.read_parquet(tmp_path / "results.parquet")
    pd.testing.assert_frame_equal(again, finished.results(), check_dtype=False)


def test_a_diverged_net_is_recorded_and_stops_what_needs_it(tiny, tmp_path):
    settings = tiny.with_values(seeds=1, tickets_of_b=False, **{"dense.lr": 1e30})
    wild = Study(settings, tmp_path / "wild")
    run(wild, stages=["dense"])
    table = wild.results()
    assert table["diverged"].all()
    assert table["test_loss"].isna().all()
    with pytest.raises(InputError, match=r"net A of pair 0 diverged.*dense\.lr") as raised:
        run(wild, stages=["matching"])
    with pytest.raises(InputError, match=r"net A of pair 0 diverged"):
        run(wild, stages=["imp"])
    again = pickle.loads(pickle.dumps(raised.value))  # a worker hands it to its driver
    assert (type(again), str(again)) == (InputError, str(raised.value))


# -------------------------------------------------------------------------- bad input


def test_what_cannot_work_is_refused_before_any_work(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("REBASIN_DATA", str(tmp_path / "file" / "data"))
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path / "nowhere")
    data._read.cache_clear()
    cases = [
        ({}, tmp_path / "file" / "store", "auto", ["store", "file"]),
        ({}, tmp_path / "store", "abacus", ["device", "abacus"]),
        ({"dataset": "fashion-mnist"}, tmp_path / "store", "auto", ["dataset", "REBASIN_DATA"]),
        ({"model": "vgg11"}, tmp_path / "store", "auto", ["14", "VGG11"]),
        ({"pool": 3}, tmp_path / "store", "auto", ["pool", "3", "28"]),
        ({"dense.batch_size": 257}, tmp_path / "store", "auto", ["dense.batch_size", "257", "256"]),
        ({"imp.batch_size": 257}, tmp_path / "store", "auto", ["imp.batch_size", "257", "256"]),
    ]
    for changes, root, device, parts in cases:
        with pytest.raises(InputError) as raised:
            Study(tiny.with_values(**changes), root, device)
        assert "\n" not in str(raised.value)
        assert all(part in str(raised.value) for part in parts)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.name != "file"]


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"workers": 0}, ["workers", "0", "at least 1"]),
        ({"stages": ["dens"]}, ["stage", "'dens'", *STAGES]),
    ],
)
def test_a_run_that_makes_no_sense_is_refused(finished, options, parts):
    with pytest.raises(InputError) as raised:
        run(finished, **options)
    assert all(part in str(raised.value) for part in parts)

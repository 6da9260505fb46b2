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

from rebasin_utils.errors import InputError
from rebasin_utils.landscape.plane import Plane as Through
from rebasin_utils.nets import data, masks, models
from rebasin_utils.running import runner
from rebasin_utils.study import plugins, together
from rebasin_utils.study.parts import METHODS
from rebasin_utils.study.seeds import derive_seed
from rebasin_utils.study.stages import (
    connectivity,
    dense,
    diversity,
    early_matching,
    imp,
    matching,
    overlaps,
    plane,
    sparse,
)
from rebasin_utils.study.store import RECORD, TENSORS
from rebasin_utils.study.study import Study
from rebasin_utils.symmetry.permutation import permute, random_permutation
from rebasin_utils.symmetry.spec import PermutationSpec
from rebasin_utils.training.evaluate import evaluate
from rebasin_utils.training.train import Job, train

STAGES = tuple(plugins.stages())


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
    for node in first.plan.all_nodes():
        assert first.record(node).get("metrics") == second.record(node).get("metrics")
        assert same(first.tensors(node), second.tensors(node))


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
    settings = tiny.with_values(sparse={}, **{"model.name": "resnet8"})
    node = dense.state_after(settings, "A", 0, 1)
    states = []
    for threads in (1, 2):
        a_study = Study(settings, tmp_path / str(threads))
        torch.set_num_threads(threads)
        try:
            a_study.compute([node])
            states.append(a_study.state(node))
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
        for node in stopped.plan.all_nodes():  # whole or absent
            assert node.key not in stopped.store or stopped.store.get(node.key)
    run(stopped)
    assert_same_results(finished, stopped)


def test_what_is_asked_for_is_computed_and_nothing_else(finished, tmp_path):
    fresh = Study(finished.settings, tmp_path / "fresh")
    s = fresh.settings
    fresh.compute([imp.ticket(s, "A", 1, 0.5)])
    assert same(imp.mask(fresh, 1, 0.5), imp.mask(finished, 1, 0.5))
    wanted = {dense.net(s, "A", 1), *(dense.state_after(s, "A", 1, k) for k in (0, 1))}
    wanted |= {imp.after(s, "A", 1, r) for r in imp.rounds(s) if r.number < 4 or not r.full}
    assert {node for node in fresh.plan.all_nodes() if node.key in fresh.store} == wanted


def test_two_that_want_the_same_rounds_at_once_do_not_wait_for_each_other_for_ever(tiny, tmp_path):
    """Two threads with a store each lock like two processes."""
    less = {"imp.prune_b": False, "sparse.sparsities": (0.8,), "sparse.methods": ()}
    settings = tiny.with_values(seeds=1, **less)
    one, two = (Study(settings, tmp_path) for _ in range(2))
    run(one, stages=["dense"])
    nodes = one.plan.nodes("imp")
    assert one.split("train").shape == two.split("train").shape == (1, 14, 14)
    barrier = threading.Barrier(2)

    def want(work, what) -> None:
        barrier.wait(60)
        work(what)

    both = [
        threading.Thread(target=want, args=arguments, daemon=True)
        for arguments in ((one.compute, nodes), (two.compute, nodes[-1:]))
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
def test_a_damaged_artifact_is_set_aside_and_made_again_bit_for_bit(
    finished, signed, reused, tmp_path, stage
):
    if stage in ("budgets", "rescaling"):
        pytest.skip("it wants runs and has no artifacts")
    finished = next(study for study in (finished, *signed, reused) if study.nodes(stage))
    damaged = copied(finished, tmp_path)
    node = damaged.plan.nodes(stage)[-1]
    before = contents(damaged)
    flip_last_byte(damaged.store.root / node.key.path / TENSORS)
    with (
        pytest.warns(UserWarning, match="damaged.*computed again"),
        pytest.raises(InputError, match="is not computed yet"),
    ):
        damaged.tensors(node)
    damaged.compute([node])
    assert same(damaged.tensors(node), finished.tensors(node))
    assert damaged.record(node).get("metrics") == finished.record(node).get("metrics")
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


def test_a_damaged_record_is_left_out_of_the_table_and_made_again_by_the_next_run(
    finished, tmp_path
):
    damaged = copied(finished, tmp_path)
    node = damaged.plan.nodes("sparse")[3]
    file = damaged.store.root / node.key.path / RECORD
    file.write_text(file.read_text().replace('"test_accuracy": 0.', '"test_accuracy": 0.9'))
    before = contents(damaged)
    table = damaged.results()
    assert len(table) == len(finished.results()) - 1
    assert node.key.path not in set(table["artifact"])
    assert damaged.missing() == [node]
    assert contents(damaged) == before  # whoever reads moves nothing
    with pytest.warns(UserWarning, match="damaged"):
        assert run(damaged) == 1
    assert_same_results(finished, damaged)


# -------------------------------------------------------------------------- reading and computing


def test_a_study_can_be_opened_without_its_data_and_without_a_store(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("REBASIN_DATA", str(tmp_path / "file" / "data"))
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path / "nowhere")
    data._read.cache_clear()
    for root in (tmp_path / "store", tmp_path / "file" / "store"):
        opened = Study(tiny.with_values(**{"data.source": "fashion-mnist"}), root)
        assert len(opened.plan.nodes("dense")) == 4
        assert opened.model is not None
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_is_not_computed_is_said_and_never_computed(tiny, tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("something was trained")

    monkeypatch.setattr(together, "train_many", refuse)
    empty = Study(tiny, tmp_path / "store")
    node, round_ = dense.net(tiny, "A", 0), imp.ticket(tiny, "A", 0, 0.5)
    doors = [
        (node, lambda: empty.record(node)),
        (node, lambda: empty.tensors(node)),
        (node, lambda: empty.tensors(node, "final/")),
        (node, lambda: empty.state(node)),
        (node, lambda: empty.network(node)),
        (round_, lambda: empty.state(round_, "mask")),
        (round_, lambda: imp.mask(empty, 0, 0.5)),
        (matching.of_pair(tiny, 0), lambda: matching.permutation(empty, 0)),
        (connectivity.between(tiny, 0), lambda: connectivity.paths(empty)),
        (empty.nodes("overlaps")[0], lambda: overlaps.table(empty)),
        (diversity.ensemble(tiny, "dense", 0), lambda: diversity.table(empty)),
    ]
    for wanted, read in doors:
        with pytest.raises(InputError) as raised:
            read()
        sentence = f"{wanted.key.path} is not computed yet: run the study first (rebasin run)"
        assert str(raised.value) == sentence
    assert len(empty.results()) == 0
    assert len(empty.missing()) == len(empty.plan.all_nodes())
    assert not empty.store.root.exists()


def test_reading_a_study_changes_nothing(finished):
    before = {p: p.stat().st_mtime_ns for p in finished.store.root.rglob("*")}
    for node in finished.nodes("imp"):
        finished.record(node), finished.tensors(node), finished.network(node)
    finished.results(), finished.missing(), matching.permutation(finished, 0)
    assert {p: p.stat().st_mtime_ns for p in finished.store.root.rglob("*")} == before


def test_of_a_stored_node_those_tensors_are_read_that_are_asked_for(finished):
    node = imp.ticket(finished.settings, "A", 0, 0.5)
    mask = finished.state(node, "mask")
    assert list(mask) == [n for n in finished.model.state_dict() if n in mask]
    assert finished.tensors(node, "mask/").keys() == {f"mask/{name}" for name in mask}
    assert list(finished.state(node)) == list(finished.model.state_dict())
    assert finished.node("imp", role="A", seed=0, sparsity=0.5) == node
    assert same(finished.network(node).state_dict(), finished.state(node))


def test_parents_that_are_missing_are_computed_first(finished, tmp_path):
    fresh = Study(finished.settings, tmp_path / "fresh")
    node = connectivity.between(fresh.settings, 0)
    fresh.compute([node])
    assert fresh.record(node)["metrics"] == finished.record(node)["metrics"]
    assert all(parent.key in fresh.store for parent in node.parents)
    assert {n.seed for n in fresh.plan.all_nodes() if n.key in fresh.store} == {0}
    assert not any(n.key in fresh.store for n in fresh.nodes("imp"))


# -------------------------------------------------------------------------- asking for more


@pytest.mark.parametrize(
    ("more", "new"),
    [
        # 2 dense, 4 rewind, 2 x 4 rounds, matchings with B and with its epoch 1, 1 path, 1 of
        # overlaps; 2 x 5 sparse, 1 early; 1 agreement of an early matching; 4 segments to IMP, 2 to
        # LTH, 2 to B; 2 x (matching, worth, sparse) of few images; a third pair makes no other
        # ensemble
        ({"seeds": 3}, 2 + 4 + 8 + 2 + 1 + 1 + 10 + 1 + 1 + 4 + 2 + 2 + 6),
        # round 2 is there; the branch of 4 nets that lands on 0.3; 2 pairs x (overlaps, 2 x 5
        # sparse, 1 segment to IMP, 2 to LTH, 2 to B)
        ({"sparse.sparsities": (0.5, 0.3)}, 4 + 2 * (1 + 10 + 1 + 2 + 2)),
        # 2 pairs x (10 sparse, 1 early, 2 of few images, 2 segments to LTH, 2 to B), 3 members, 3
        # ensembles, 1 plane
        ({"sparse.lr": 0.01}, 2 * (10 + 1 + 2 + 2 + 2) + 3 + 3 + 1),
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
    settings = tiny.with_values(seeds=1, **{"sparse.methods": ("naive",), "dense.epochs": 4})
    epochs = "sparse.rewind_epochs"
    whole = Study(settings.with_values(**{epochs: (0, 1, 2)}), tmp_path / "whole")
    later = Study(settings.with_values(**{epochs: (0, 1)}), tmp_path / "later")
    run(whole, stages=["dense"])
    run(later, stages=["dense"])
    epochs = []
    later = Study(whole.settings, later.store)
    node = later.node("rewind", role="B", seed=0, epoch=2)
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
    real, given = together.train_many, []

    def recorded(model, jobs, *arguments, **options):
        given.append(jobs)
        return real(model, jobs, *arguments, **options)

    methods, seen = fresh.settings.sparse.methods, {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(together, "train_many", recorded)
        for k in fresh.settings.sparse.rewind_epochs:
            fresh.compute([sparse.one(fresh.settings, m, 0.5, k, 0) for m in methods])
            seen |= {(m, k): job for m, job in zip(methods, given[-1], strict=True)}
    return seen


def test_the_methods_are_paired_they_differ_in_their_masks_alone(finished, sparse_jobs):
    for k in (0, 1):
        of_b = [sparse_jobs[m, k] for m in finished.settings.sparse.methods if m != "lth"]
        start = finished.state(dense.state_after(finished.settings, "B", 0, k))
        assert len(of_b) == 4
        for job in of_b:
            assert same(job.state, start)
        assert len({job.seed for job in sparse_jobs.values()}) == 1
        for i, job in enumerate(of_b):
            assert not any(same(job.mask, other.mask) for other in of_b[:i])


def test_each_method_makes_of_the_ticket_what_its_name_says(finished, sparse_jobs):
    ticket, pi = imp.mask(finished, 0, 0.5), matching.permutation(finished, 0)
    density = {n: int(m.sum()) for n, m in ticket.items()}
    for k in (0, 1):
        used = {m: sparse_jobs[m, k].mask for m in finished.settings.sparse.methods}
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
        assert same(
            sparse_jobs["lth", k].state,
            finished.state(dense.state_after(finished.settings, "A", 0, k)),
        )
    for role, method in (("A", "lth"), ("B", "naive")):
        init = models.build("mlp", (1, 14, 14), 10, seed=derive_seed("init", role, 0))
        assert same(sparse_jobs[method, 0].state, init.state_dict())
        assert not same(sparse_jobs[method, 1].state, init.state_dict())


def test_a_and_b_have_different_inits_and_data_orders(finished):
    inits = [
        finished.state(dense.state_after(finished.settings, role, seed, 0))["classifier.weight"]
        for role in "AB"
        for seed in range(2)
    ]
    assert all(not torch.equal(a, b) for i, a in enumerate(inits) for b in inits[:i])
    net = finished.model
    a, b = (finished.state(dense.state_after(finished.settings, role, 0, 0)) for role in "AB")
    recipe, images = finished.settings.dense, finished.split("train")
    expected = finished.state(dense.net(finished.settings, "B", 0))
    own, others = (derive_seed("data", role, 0) for role in "BA")
    assert same(train(net, Job(b, own), recipe, images).state, expected)
    assert not same(train(net, Job(b, others), recipe, images).state, expected)
    assert not same(a, b)


def test_a_rewind_state_lies_on_the_way_of_its_dense_run(finished):
    node = dense.net(finished.settings, "A", 0)
    job = Job(
        finished.state(dense.state_after(finished.settings, "A", 0, 0)), derive_seed("data", "A", 0)
    )
    recipe, images = finished.settings.dense, finished.split("train")
    after_one = train(finished.model, job, recipe, images, until=1)
    assert same(after_one.state, finished.state(dense.state_after(finished.settings, "A", 0, 1)))
    assert same(train(finished.model, job, recipe, images).state, finished.state(node))


# -------------------------------------------------------------------------- π keeps the function


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / a.abs().max()).item()


def test_the_matched_a_computes_what_a_does(finished):
    node = dense.net(finished.settings, "A", 0)
    net, state = finished.network(node), finished.state(node)
    matched = copy.deepcopy(net)
    moved = permute(finished.spec, matching.permutation(finished, 0), state)
    matched.load_state_dict(moved)
    assert not same(moved, state)
    images = finished.split("train")
    x = images.normalised(images.pixels)
    with torch.no_grad():
        assert relative(net(x), matched(x)) <= 1e-5


@pytest.mark.parametrize("name", sorted(models.MODELS.keys() - {"shufflenet_g3"}))
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
        metrics = finished.record(connectivity.between(finished.settings, seed))["metrics"]
        a, b = (
            finished.record(dense.net(finished.settings, role, seed))["metrics"]["test_accuracy"]
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
        metrics = finished.record(connectivity.between(finished.settings, seed))["metrics"]
        for each in metrics["variances"]:
            if each["correction"] == "repair":
                tolerance = {"train": 1e-4, "test": 0.1}  # it was set on training images
                assert each["ratio"] == pytest.approx(1, abs=tolerance[each["split"]])
            else:
                assert each["ratio"] < 0.9


def test_the_first_member_of_an_ensemble_is_the_run_of_the_grid(finished):
    for method in ("dense", "imp", "lth", "permuted", "naive"):
        found = finished.record(diversity.ensemble(finished.settings, method, 0))["metrics"]
        node = diversity.members(finished.settings, method, 0)[0]
        expected = finished.record(node)["metrics"]["test_accuracy"]
        assert found["accuracies"][0] == pytest.approx(expected)
        assert len(found["accuracies"]) == 2
        assert len(found["pairs"]) == 1


def test_the_map_is_at_its_models_what_they_are(finished):
    metrics = finished.record(plane.of_pair(finished.settings, 0))["metrics"]
    assert metrics["ticks"] == [-1.5, 0.0, 0.5, 1.0, 2.5]
    assert metrics["models"]["π(LTH)"] == [0, 0, 0]
    assert metrics["models"]["permuted"] == pytest.approx([1, 0, 0], abs=1e-5)
    assert metrics["models"]["π(A), dense"][1:] == pytest.approx([1, 0], abs=1e-5)
    assert metrics["path"][-1] == pytest.approx([1, 0, 0], abs=1e-5)
    assert len(metrics["accuracy"]) == 5


def test_the_path_on_the_map_is_that_of_the_run(finished):
    """It is trained again for its states: from its start, epoch by epoch, to the stored end."""
    node = plane.of_pair(finished.settings, 0)
    net, _, lth, trained, matched = node.parents
    assert lth == sparse.one(finished.settings, "lth", 0.5, 1, 0)
    assert trained == sparse.one(finished.settings, "permuted", 0.5, 1, 0)
    pi = finished.tensors(matched)
    moved, sparse_moved = (permute(finished.spec, pi, finished.state(n)) for n in (net, lth))
    mask = permute(finished.spec, pi, finished.state(trained.parents[1], "mask"))
    through = Through.through(finished.model, sparse_moved, finished.state(trained), moved)
    begin = masks.apply(mask, finished.state(trained.parents[0]))
    path = finished.record(node)["metrics"]["path"]
    assert len(path) == finished.settings.sparse_recipe(1).epochs + 1
    assert path[0] == pytest.approx(through.coordinates(begin), abs=1e-5)
    assert path[-1] == pytest.approx([1, 0, 0], abs=1e-5)


def test_the_overlaps_are_those_of_the_stored_tickets(finished):
    for node in finished.nodes("overlaps"):
        first, own = (imp.mask(finished, node.seed, 0.5, role) for role in "AB")
        pi = matching.permutation(finished, node.seed)
        found = finished.record(node)["metrics"]["overlaps"]
        assert [each["sparsity"] for each in found] == [0.5] * 3
        overlap = {each["kind"]: each["overlap"] for each in found}
        assert overlap["mask"] == masks.overlap(first, own)
        assert overlap["permuted"] == masks.overlap(permute(finished.spec, pi, first), own)
        assert 0 < overlap["random_permutation"] < 1


def test_an_early_matching_agrees_with_the_final_one_where_they_send_units_to_one_place(finished):
    for node in finished.nodes("early_matching"):
        early, final = (finished.tensors(parent) for parent in node.parents)
        same_place = torch.cat([early[name] == final[name] for name in final])
        agreement = finished.record(node)["metrics"]["agreement"]
        assert agreement == pytest.approx(same_place.double().mean().item())
        run_ = early_matching.permuted(finished.settings, node.seed, node.at["match_epoch"])
        assert run_.parents[2] == node.parents[0]


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
        (node,) = [n for n in finished.plan.all_nodes() if n.key.path == row.artifact]
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
        record = finished.record(node)["metrics"]
        (metrics,) = evaluate(finished.model, [finished.state(node)], finished.split("test"))
        assert tuple(record[f"test_{name}"] for name in metrics._fields) == metrics


def test_the_table_of_an_empty_store_has_its_columns_and_no_rows(tiny, tmp_path):
    table = Study(tiny, tmp_path / "empty").results()
    assert len(table) == 0
    assert set(table.columns) >= REQUIRED


def test_the_table_outlives_parquet(finished, tmp_path):
    finished.results().to_parquet(tmp_path / "results.parquet")
    again = pd.read_parquet(tmp_path / "results.parquet")
    pd.testing.assert_frame_equal(again, finished.results(), check_dtype=False)


def test_a_diverged_net_is_recorded_and_stops_what_needs_it(tiny, tmp_path):
    settings = tiny.with_values(seeds=1, **{"imp.prune_b": False, "dense.lr": 1e30})
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
        ({}, tmp_path / "file" / "store", ["store", "file", "cannot be written"]),
        ({"data.source": "fashion-mnist"}, tmp_path / "store", ["dataset", "REBASIN_DATA"]),
        ({"model.name": "vgg11"}, tmp_path / "store", ["14", "VGG11"]),
        ({"data.pool": 3}, tmp_path / "store", ["pool", "3", "28"]),
        ({"dense.batch_size": 257}, tmp_path / "store", ["dense.batch_size", "257", "256"]),
        ({"imp.batch_size": 257}, tmp_path / "store", ["imp.batch_size", "257", "256"]),
    ]
    for changes, root, parts in cases:
        refused = Study(tiny.with_values(**changes), root)  # opening it refuses nothing
        node = dense.net(refused.settings, "A", 0)
        doors = (refused.check, lambda s=refused: run(s), lambda s=refused, n=node: s.compute([n]))
        for work in doors:
            with pytest.raises(InputError) as raised:
                work()
            assert "\n" not in str(raised.value)
            assert all(part in str(raised.value) for part in parts)
    with pytest.raises(InputError, match=r"device.*abacus"):
        Study(tiny, tmp_path / "store", "abacus")
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

"""A mask from other data: every run has its mask from where it says, and only that is trained."""

from __future__ import annotations

import pytest
import torch

from rebasin_utils.chapters import other_data
from rebasin_utils.errors import InputError
from rebasin_utils.nets import masks
from rebasin_utils.running.runner import run
from rebasin_utils.study.stages import dense, imp, reuse
from rebasin_utils.study.study import Study
from rebasin_utils.symmetry.permutation import permute

CELL = (0.5, 1, 0)  # sparsity, rewind epoch, pair


@pytest.fixture(scope="module")
def study(reused: Study) -> Study:
    return reused


@pytest.fixture(scope="module")
def classifier(study) -> str:
    return f"{masks.classifier(study.model)}.weight"


def test_a_is_the_net_that_a_study_of_the_source_trains(study, tmp_path):
    """The same key, so that such a study's nets and tickets are used; and the same weights."""
    source = reuse.source(study.settings)
    plain = study.settings.with_values(
        name="plain", reuse={}, **{"data.source": study.settings.reuse.source}
    )
    assert (
        dense.net(plain, "A", 0) == dense.net(source, "A", 0) != dense.net(study.settings, "A", 0)
    )
    assert imp.ticket(plain, "A", 0, 0.5) == imp.ticket(source, "A", 0, 0.5)
    alone = Study(plain, tmp_path / "store")
    alone.compute([dense.net(plain, "A", 0)])
    ours, theirs = (s.state(dense.net(source, "A", 0)) for s in (study, alone))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    record = study.record(dense.net(source, "A", 0))
    assert record["settings"]["data"]["source"] == study.settings.reuse.source


def test_every_start_has_the_mask_that_it_names(study, classifier):
    s = study.settings
    a = study.state(imp.ticket(reuse.source(s), "A", 0, 0.5), "mask")
    b = study.state(imp.ticket(s, "B", 0, 0.5), "mask")
    pi, by_source = (study.tensors(reuse.between(s, 0, on_source=on)) for on in (False, True))
    expected = {
        "naive": a,
        "own": b,
        "permuted": permute(study.spec, pi, a),
        "permuted_by_source": permute(study.spec, by_source, a),
    }
    assert any(not torch.equal(pi[group], by_source[group]) for group in pi)
    for start, mask in expected.items():
        found = reuse.mask_for(study, reuse.one(s, start, *CELL))
        assert found.keys() == mask.keys() - {classifier}
        assert all(torch.equal(found[name], mask[name]) for name in found)
    randomly = reuse.mask_for(study, reuse.one(s, "random_mask", *CELL))
    assert {n: int(m.sum()) for n, m in randomly.items()} == {
        n: int(a[n].sum()) for n in a if n != classifier
    }


@pytest.mark.parametrize(
    ("changes", "starts"),
    [
        (
            {"reuse.source": "fashion-mnist"},
            {"naive", "permuted", "permuted_by_source", "random_mask"},
        ),
        ({"data.test_limit": 500}, set(reuse.STARTS)),
        ({"matching.objective": "covariance"}, {"permuted", "permuted_by_source"}),
        ({"closer_look.sparsity": 0.5}, set()),
    ],
)
def test_a_setting_changes_the_runs_that_depend_on_it_and_no_others(study, changes, starts):
    other = study.settings.with_values(**changes)
    changed = {
        start
        for start in reuse.STARTS
        if reuse.one(other, start, *CELL) != reuse.one(study.settings, start, *CELL)
    }
    assert changed == starts


def test_runs_are_of_b_and_keep_their_masks_and_the_whole_classifier(study, classifier):
    for node in study.nodes("reuse"):
        state, mask = study.state(node), reuse.mask_for(study, node)
        assert node.parents[0].at["role"] == "B"
        assert all(not state[name][~kept].any() for name, kept in mask.items())
        assert state[classifier].ne(0).float().mean() > 0.99
        assert study.record(node)["settings"]["data"]["source"] == study.settings.data.source


def test_two_workers_find_the_same(study, tmp_path):
    other = Study(study.settings, tmp_path / "store")
    run(other, workers=2, quiet=True)
    both = [other_data.accuracies([s]) for s in (study, other)]
    assert both[0].equals(both[1])
    assert len(both[0]) == 2 * 2 * len(reuse.STARTS)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"reuse.source": "mnist-5k"}, "must be other data than data.source"),
        ({"reuse.source": "svhn"}, r"its images are \(3, 32, 32\) in 10 classes"),
        ({"reuse.source": "no-such"}, "data.source = 'no-such': choose one of"),
    ],
)
def test_data_that_cannot_be_the_source_are_refused(study, tmp_path, changes, sentence):
    with pytest.raises(InputError, match=sentence) as raised:
        run(Study(study.settings.with_values(**changes), tmp_path), workers=1, quiet=True)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.rglob("record.json"))


def test_the_chapter_shows_what_was_measured(study):
    chapter = other_data.OTHER_DATA
    assert chapter.studies([study]) == [study]
    (picture,) = chapter.pictures([study])
    names = {trace.name for trace in picture.figure.data}
    assert names == {name for name, _ in other_data.STARTS.values()}
    ((_, verdicts),) = chapter.verdicts([study])
    assert len(verdicts) == 4
    table = picture.table.set_index(["start", "rewind_epoch", "seed"])["accuracy"]
    gain = (table["permuted"] - table["naive"])[1].mean()
    assert f"k=1: {gain:+.2f}" in verdicts["ours"].iloc[0]


def test_the_maps_count_the_weights_of_every_pixel(study):
    s = study.settings
    kept = other_data.kept_inputs(study)
    ticket = study.state(imp.ticket(s, "B", 0, 0.5), "mask")
    first = next(iter(ticket.values()))
    (own,) = (share for name, share in kept.items() if name.startswith("B's own"))
    assert own.shape == (14, 14)
    assert own.sum() * len(first) == pytest.approx(int(first.sum()))
    assert len(other_data.input_maps(kept).data) == 2

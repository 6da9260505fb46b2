"""Rescaled starts are trained beside the grid's, from the same states with the same masks."""

from __future__ import annotations

import shutil

import pytest
import torch

from rebasin_utils.chapters import sparse_claims
from rebasin_utils.errors import InputError
from rebasin_utils.nets import masks
from rebasin_utils.study.stages import rescaling, sparse
from rebasin_utils.study.study import Study


@pytest.fixture(scope="module")
def settings(tiny):
    return tiny.with_values(**{"rescaling.rewind_epochs": (0,), "rescaling.basis": "neuron"})


@pytest.fixture(scope="module")
def study(settings, finished, tmp_path_factory) -> Study:
    """The finished study, and its rescaled runs beside it."""
    store = shutil.copytree(finished.store.root, tmp_path_factory.mktemp("rescaled") / "store")
    study = Study(settings, store)
    assert {node.at.get("rescale") for node in study.missing()} == {"neuron"}
    study.compute(study.missing())
    return study


def test_only_the_start_is_another(study, settings):
    sparsity, seed = settings.closer_look.sparsity, 0
    scaled = rescaling.run(settings, "permuted", 0, seed)
    plain = sparse.one(settings, "permuted", sparsity, 0, seed)
    mask = sparse.mask_for(study, plain)
    first, second = (sparse.job(study, node, mask) for node in (plain, scaled))
    assert first.seed == second.seed
    expected = masks.sparse_aware(mask, first.state, "neuron")
    assert all(torch.equal(second.state[name], expected[name]) for name in expected)
    assert study.record(scaled)["metrics"] != study.record(plain)["metrics"]


def test_the_table_and_the_claims_hold_both_against_each_other(study, settings):
    table = rescaling.table(study)
    assert len(table) == 3 * settings.seeds
    claims = sparse_claims.of_rescaling(study)
    assert list(claims["n"]) == [settings.seeds] * 3
    naive = table[table["method"] == "naive"]
    gain = 100 * (naive["rescaled"] - naive["as_it_is"]).mean()
    (row,) = claims[claims["claim"].str.startswith("naive")]["ours"]
    assert f"k=0: {gain:+.2f}" in row


def test_there_must_be_runs_to_hold_them_against(tiny, tmp_path):
    only_init = {"sparse.rewind_epochs": (0,), "rescaling.rewind_epochs": (1,)}
    settings = tiny.with_values(closer_look={}, **only_init)
    with pytest.raises(InputError, match=r"rescaling\.rewind_epochs = 1: these runs are held"):
        Study(settings, tmp_path)

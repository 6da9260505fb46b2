"""Signed masks through the stages: what is carried, from which round, and where it ends."""

from __future__ import annotations

import pytest
import torch

from rebasin_utils.errors import InputError
from rebasin_utils.landscape import interpolation
from rebasin_utils.nets import masks
from rebasin_utils.running.runner import run
from rebasin_utils.study.plan import Plan
from rebasin_utils.study.presets import preset
from rebasin_utils.study.stages import (
    dense,
    merged,
    sign_agreement,
    sign_paths,
    sign_transfer,
    stability,
    tickets,
)
from rebasin_utils.study.study import Study
from rebasin_utils.training import norms, pruning, signs
from rebasin_utils.training.train import train_many

STAGES = ("lrr", "aws", "finetuning", "sign_transfer", "sign_paths", "stability", "sign_agreement")


def one(study: Study, kind: str, procedure: str = "lrr", **how):
    return sign_transfer.one(
        study.settings, kind, procedure, 0, study.settings.signs.rounds[-1], **how
    )


def test_a_study_that_asks_for_no_signs_has_none():
    for settings in preset("smoke"):
        plan = Plan(settings)
        assert not any(plan.nodes(stage) for stage in STAGES)


def test_a_ticket_is_the_state_that_was_trained_under_its_mask(signed):
    study = signed[0]
    for procedure in study.settings.signs.procedures:
        for number in (1, 2):
            node = tickets.after(study.settings, procedure, "A", 0, number)
            state, mask = study.state(node), study.state(node, "mask")
            assert signs.mask_of(signs.of(state, mask)).keys() == mask.keys()
            expected = tickets.sparsity(study.settings, number)
            assert masks.sparsity(mask) == pytest.approx(expected, abs=1e-4)
            assert f"{masks.classifier(study.model)}.weight" not in mask


def test_signs_from_the_wrong_round_are_refused(signed):
    study = signed[0]
    early, late = (tickets.after(study.settings, "lrr", "A", 0, number) for number in (1, 2))
    with pytest.raises(InputError, match="not trained under this mask"):
        signs.of(study.state(early), study.state(late, "mask"))
    with pytest.raises(InputError, match="no sign"):
        signs.of(study.state(late), study.state(early, "mask"))


def test_a_round_is_what_the_procedure_does_by_itself(signed):
    study = signed[0]
    s = study.settings
    for procedure in ("lrr", "aws"):
        first, second = (tickets.after(s, procedure, "A", 0, number) for number in (1, 2))
        seeds = dict(
            seeds=[tickets.derive_seed("rounds", "A", 0)],
            aws_seeds=[tickets.derive_seed("aws", "A", 0)] if procedure == "aws" else None,
        )
        ((mask, trained),) = pruning.prune_and_tune(
            study.model,
            [study.state(first)],
            [study.state(first, "mask")],
            step=pruning.Round(2, tickets.sparsity(s, 2), (), s.signs.rate),
            recipe=tickets._recipe(s, procedure, pruning.Round(2, 0.5, (), s.signs.rate)),
            images=study.split("train"),
            augment=s.data.augment,
            **seeds,
        )
        assert all(torch.equal(kept, study.state(second, "mask")[n]) for n, kept in mask.items())
        stored = study.state(second)
        statistics = {n for n in stored if "running" in n or "num_batches" in n}
        assert statistics
        for name in stored.keys() - statistics:
            assert torch.equal(trained.state[name], stored[name]), name
        assert any(not torch.equal(trained.state[n], stored[n]) for n in statistics)


def test_what_is_measured_has_its_statistics_recomputed_without_interpolation(signed):
    study = signed[0]
    for procedure in ("lrr", "aws"):
        node = tickets.after(study.settings, procedure, "A", 0, 2)
        stored = study.state(node)
        again = merged.with_statistics(study, stored)
        for name, values in stored.items():
            torch.testing.assert_close(again[name].to(values), values, msg=name)
    plain = signed[-1]
    state = plain.state(tickets.after(plain.settings, "lrr", "A", 0, 2))
    assert merged.with_statistics(plain, state) is state


def test_a_start_has_the_magnitudes_of_b_and_the_signs_of_a(signed):
    study = signed[0]
    ticket = tickets.after(study.settings, "lrr", "A", 0, 2)
    a = signs.canonical(study.model, study.state(ticket))
    mask = study.state(ticket, "mask")
    b = study.state(dense.state_after(study.settings, "B", 0, 0))
    starts = {}
    for kind in sign_transfer.KINDS:
        starts[kind], kept, _ = sign_transfer.start_of(study, one(study, kind))
        assert masks.count(kept) == masks.count(mask)
    for name, kept in mask.items():
        assert torch.equal(starts["mask"][name], b[name] * kept)
        for kind in ("signs", *sign_transfer.NORMS, "signs+classifier"):
            assert torch.equal(starts[kind][name].abs(), b[name].abs() * kept)
            assert torch.equal(starts[kind][name].sign(), (a[name] * kept).sign())
        assert torch.equal(starts["shuffled"][name].abs(), b[name].abs() * kept)
        assert (starts["shuffled"][name] > 0).sum() == (starts["signs"][name] > 0).sum()
    assert any(not torch.equal(starts["shuffled"][n], starts["signs"][n]) for n in mask)
    for kind, ends in {"signs": (), **sign_transfer.NORMS}.items():
        for name in norms.inits(study.model):
            source = a if ends and name.endswith(ends) else b
            assert torch.equal(starts[kind][name], source[name]), (kind, name)
    head = f"{masks.classifier(study.model)}.weight"
    assert torch.equal(starts["signs"][head], b[head])
    assert torch.equal(starts["signs+classifier"][head], b[head].abs() * a[head].sign())


def test_before_any_training_statistics_are_those_of_the_net_that_is_measured(signed):
    study = signed[0]
    nodes = [one(study, kind) for kind in sign_transfer.KINDS]
    starts = [sign_transfer.start_of(study, node)[0] for node in nodes]
    recomputed = [merged.with_statistics(study, start) for start in starts]
    found = [study.record(node)["metrics"]["accuracy_before"] for node in nodes]
    fresh, stale = (
        [m.accuracy for m in interpolation.evaluate(study.model, states, study.split("test"))]
        for states in (recomputed, starts)
    )
    assert found == fresh != stale


def test_an_address_moves_mask_and_signs_and_nothing_of_b(signed):
    study = signed[0]
    ticket = tickets.after(study.settings, "lrr", "A", 0, 2)
    a = masks.apply(study.state(ticket, "mask"), signs.canonical(study.model, study.state(ticket)))
    b = study.state(dense.state_after(study.settings, "B", 0, 0))
    from rebasin_utils import permute

    for address in ("pi", "random"):
        node = one(study, "signs", address=address)
        start, mask, _ = sign_transfer.start_of(study, node)
        moved = permute(study.spec, sign_transfer.moves(study, node), a)
        for name in mask:
            assert torch.equal(start[name], b[name].abs() * moved[name].sign())
    plain, by_pi = (one(study, "mask", address=address) for address in ("", "pi"))
    assert study.record(by_pi)["metrics"]["agreement"] > study.record(plain)["metrics"]["agreement"]


def test_without_norm_layers_a_start_is_rescaled_by_its_layers_densities(signed):
    study = signed[-1]
    assert study.settings.signs.rescale
    start, mask, _ = sign_transfer.start_of(study, one(study, "signs"))
    b = study.state(dense.state_after(study.settings, "B", 0, 0))
    for name, kept in mask.items():
        density = kept.float().mean()
        torch.testing.assert_close(start[name].abs(), b[name].abs() * kept / density.sqrt())


def test_transfers_trained_together_are_those_trained_one_by_one(signed):
    study = signed[0]
    for node in (one(study, "signs"), one(study, "mask", "aws"), one(study, "solution")):
        state, mask, _ = sign_transfer.start_of(study, node)
        job = sign_transfer.Job(state, sign_transfer.derive_seed("sign_transfer", 0, 0), mask)
        (alone,) = train_many(
            study.model,
            [job],
            tickets.transfer_recipe(study.settings),
            study.split("train"),
            augment=study.settings.data.augment,
        )
        stored = study.state(node)
        for name in mask:
            assert torch.equal(alone.state[name], stored[name])


def test_a_path_leads_to_the_solution_under_the_names_that_were_given(signed):
    study = signed[0]
    table = sign_paths.table(study)
    assert (table["barrier"] >= 0).all()
    node = next(n for n in study.nodes("sign_paths") if n.at.get("address") == "pi")
    points = study.record(node)["metrics"]["points"]
    solution = study.record(node.parents[1])["metrics"]
    assert points[0]["accuracy"] == pytest.approx(solution["test_accuracy"], abs=0.01)
    end = study.record(node.parents[0])["metrics"]
    assert points[-1]["accuracy"] == pytest.approx(end["test_accuracy"], abs=0.01)


def test_the_noises_of_stability_are_what_they_are_called(signed):
    study = signed[0]
    for node in study.nodes("stability"):
        first, second = node.parents
        inits = [parent.parents[0].key for parent in node.parents]
        orders = [parent.at.get("order", 0) for parent in node.parents]
        if node.at["noise"] == "orders":
            assert inits[0] == inits[1]
            assert orders == [0, 1]
        else:
            assert inits[0] != inits[1]
            assert orders == [0, 0]
        assert first.parents[1] == second.parents[1]  # one ticket
    assert set(stability.table(study)["noise"]) == {"orders", "inits"}


def test_agreement_without_a_permutation_is_chance(signed):
    table = sign_agreement.table(signed[0])
    at = table.groupby(["address", "epoch"])["agreement"].mean()
    assert at["", 0] == pytest.approx(0.5, abs=0.03)
    assert at["pi", 0] > at["", 0]


def test_aws_of_a_net_without_norm_layers_is_refused(tmp_path):
    settings = preset("smoke-signs")[-1].with_values(**{"signs.procedures": ("lrr", "aws")})
    with pytest.raises(InputError, match="norm"):
        run(Study(settings, tmp_path / "store", "cpu"), workers=1, quiet=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"signs.rounds": (0,)}, "signs.rounds[0] = 0: must be greater than or equal to 1"),
        ({"signs.rounds": (2, 2)}, "every value must occur once"),
        ({"signs.rate": 1.0}, "signs.rate = 1.0: must be less than 1"),
        ({"signs.procedures": ("sgd",)}, "must be 'lrr', 'aws' or 'finetuning'"),
        ({"signs.rewind_epochs": (9,)}, "signs.rewind_epochs = 9: must be below"),
        ({"signs.lr": -1}, "signs.lr = -1: must be greater than 0"),
    ],
)
def test_a_bad_setting_is_refused_in_a_sentence(change, said):
    with pytest.raises(InputError) as raised:
        preset("smoke-signs")[0].with_values(**change)
    assert said in str(raised.value)


@pytest.mark.parametrize("stage", ["sign_paths", "stability"])
def test_a_path_is_measured_with_its_statistics_recomputed_at_every_point(stage, signed):
    study = signed[0]
    node = next(n for n in study.nodes(stage) if n.at["kind"] == "mask")
    metrics = study.record(node)["metrics"]
    ends = [study.state(parent) for parent in node.parents]
    if stage == "sign_paths":
        ends.reverse()  # it leads from the solution to where the transfer ends
    stale = [interpolation.lerp(*ends, a) for a in metrics["alphas"]]
    recomputed = [merged.with_statistics(study, state) for state in stale]
    images = merged.measured_on(study)
    found = [point["loss"] for point in metrics["points"]]
    assert found == [m.loss for m in interpolation.evaluate(study.model, recomputed, images)]
    old = [m.loss for m in interpolation.evaluate(study.model, stale, images)]
    assert all(a != b for a, b in zip(found[1:-1], old[1:-1], strict=True))

"""AWS is LRR with norm layers between their init and themselves, for the length of a step."""

from __future__ import annotations

import copy
from unittest.mock import patch

import pytest
import torch
from pretended_gpu import prefer_graphs, pretended_gpu
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from rebasin_utils.errors import InputError
from rebasin_utils.landscape.interpolation import reset_batch_norm
from rebasin_utils.nets import masks, models
from rebasin_utils.nets.data import Batches, EpochPlan, Images, in_order
from rebasin_utils.training import graphs, norms
from rebasin_utils.training.evaluate import evaluate
from rebasin_utils.training.recipes import Recipe
from rebasin_utils.training.stacking import Single, Stacked
from rebasin_utils.training.train import Job, train, train_many

RECIPE = Recipe(epochs=2, lr=0.1, batch_size=64, schedule="constant")
NORMED = ["mlp_bn", "mlp_ln", "resnet8"]


def net_of(name: str, seed: int = 0) -> nn.Module:
    return models.build(name, (1, 14, 14), 10, seed=seed)


def some_jobs(name: str, n: int, **options) -> list[Job]:
    """Jobs of which no two are alike; every other one has a mask."""
    jobs = []
    for i in range(n):
        state = net_of(name, seed=i).state_dict()
        dense = masks.dense_mask(state, masks.prunable(net_of(name)))
        mask = masks.global_magnitude(state, dense, keep=masks.count(dense) // 2) if i % 2 else None
        jobs.append(Job(state, 100 + i, mask, aws_seed=7 + i, **options))
    return jobs


def plainly(job: Job) -> Job:
    return Job(job.state, job.seed, job.mask, job.snapshots)


def same(first: masks.State, second: masks.State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


# -------------------------------------------------------------------------- what AWS is


@pytest.mark.parametrize("name", NORMED)
def test_with_draws_of_zero_aws_is_plain_training_to_the_bit(name, images, monkeypatch):
    monkeypatch.setattr(norms, "draws", lambda seed, epoch, steps: torch.zeros(steps))
    jobs = some_jobs(name, 2)
    found = train_many(net_of(name), jobs, RECIPE, images)
    expected = train_many(net_of(name), [plainly(job) for job in jobs], RECIPE, images)
    for a, b in zip(found, expected, strict=True):
        assert same(a.state, b.state)
        assert a.losses == b.losses


class Precise(Images):
    """Images whose pixels are normalised in float64, so that rounding hides nothing."""

    def normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        return super().normalised(pixels).double()


def plain_aws(net: nn.Module, job: Job, recipe: Recipe, images: Images):
    """The method in a loop, as its formula has it: autograd differentiates it."""
    net.load_state_dict(job.state)
    optimizer = torch.optim.SGD(
        net.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay
    )
    batches, losses = Batches(images, recipe.batch_size, augment=False), []
    net.train()
    for epoch in range(recipe.epochs):
        plan, total = batches.plan([job.seed], epoch), 0.0
        draws = norms.draws(job.aws_seed, epoch, batches.steps).double()
        for step, a in enumerate(draws):
            x, y = batches.at(plan, step)
            own = dict(net.named_parameters())
            for name in own:
                module = net.get_submodule(name.rpartition(".")[0])
                if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm):
                    init = 1.0 if name.endswith("weight") else 0.0
                    own[name] = a * init + (1 - a) * own[name]
            loss = F.cross_entropy(functional_call(net, own, (x[0],)), y[0])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total / batches.steps)
    return net.state_dict(), losses


@pytest.mark.parametrize("name", NORMED)
def test_aws_is_its_formula_differentiated_by_autograd(name, images):
    """In float64, running statistics included; from γ and β that are not their init."""
    images = Precise(images.pixels, images.labels, images.source)
    net, drawn = net_of(name, seed=3).double(), torch.Generator().manual_seed(0)
    for key, parameter in net.named_parameters():
        if key in norms.inits(net):
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=drawn).double()
    job = Job(copy.deepcopy(net.state_dict()), seed=11, aws_seed=5)
    expected, losses = plain_aws(copy.deepcopy(net), job, RECIPE, images)
    trained = train(net, job, RECIPE, images)
    for tensor_name, tensor in expected.items():
        torch.testing.assert_close(trained.state[tensor_name], tensor, atol=1e-9, rtol=1e-9)
    assert trained.losses == pytest.approx(losses, rel=1e-6)  # summed in float32
    assert not same(trained.state, train(net, plainly(job), RECIPE, images).state)


@pytest.mark.parametrize("kind", [Stacked, Single])
@pytest.mark.parametrize("name", ["mlp_bn", "mlp_ln"])
def test_gradients_of_gamma_and_beta_are_the_slopes_of_the_loss(name, kind, images):
    """Central differences in float64, of every γ and β of the middle layer, under three draws."""
    net = net_of(name).double()
    state = {n: t.clone() for n, t in net.state_dict().items()}
    drawn = torch.Generator().manual_seed(0)
    (gamma,) = (n for n in norms.inits(net) if n.endswith("1.weight"))
    beta = gamma.replace("weight", "bias")
    for key in (gamma, beta):
        state[key] += 0.3 * torch.randn(state[key].shape, generator=drawn).double()
    x = images.normalised(images.pixels[:32]).double()[None]
    y = images.labels[None, :32]

    def loss_and_gradients(state: masks.State, a: float):
        stack = kind(net, [state], torch.device("cpu"))
        drawn_a = torch.full((1, 1), a, dtype=torch.float64)
        loss = norms.Interpolated(net, stack).losses(x, y, drawn_a)
        return loss.item(), stack.gradients()

    h = 1e-5
    for a in (0.0, 0.3, 0.9):
        _, gradients = loss_and_gradients(state, a)
        for key in (gamma, beta):
            for unit in range(0, 128, 16):
                ends = []
                for sign in (1, -1):
                    moved = {n: t.clone() for n, t in state.items()}
                    moved[key][unit] += sign * h
                    ends.append(loss_and_gradients(moved, a)[0])
                slope = (ends[0] - ends[1]) / (2 * h)
                assert gradients[key][0, unit].item() == pytest.approx(slope, abs=1e-8, rel=1e-5)


@pytest.mark.parametrize("name", NORMED)
def test_when_a_step_is_over_norm_layers_are_themselves_again(name, images):
    """So nothing is interpolated when a net is evaluated or kept."""
    net = net_of(name)
    state = {n: t.clone() for n, t in net.state_dict().items()}
    for key in norms.inits(net):
        state[key] += 0.25
    kind = Single if name == "resnet8" else Stacked
    stack = kind(net, [state], torch.device("cpu"))
    x = images.normalised(images.pixels[:32])[None]
    norms.Interpolated(net, stack).losses(x, images.labels[None, :32], torch.full((1, 1), 0.7))
    left = stack.states()[0]
    assert all(torch.equal(left[n], state[n]) for n, _ in net.named_parameters())


def test_a_net_whose_rate_is_next_to_nothing_keeps_its_gamma_and_answers_as_before(images):
    """A weight that AWS leaves is the trained one; only statistics have moved."""
    net = net_of("mlp_ln")
    state = {n: t + 0.25 if n in norms.inits(net) else t for n, t in net.state_dict().items()}
    recipe = Recipe(epochs=2, lr=1e-12, batch_size=64)
    trained = train(net, Job(state, 0, snapshots=(1,), aws_seed=3), recipe, images)
    before, after, between = evaluate(net, [state, trained.state, trained.snapshots[1]], images, 64)
    assert before.loss == pytest.approx(after.loss, rel=1e-6)
    assert before.loss == pytest.approx(between.loss, rel=1e-6)


def test_statistics_gathered_under_aws_are_not_those_of_the_net_it_leaves(images):
    """They are to be recomputed; those of plain training need not be."""
    net = net_of("mlp_bn")
    state = {n: t * 0.3 if n in norms.inits(net) else t for n, t in net.state_dict().items()}
    recipe = Recipe(epochs=15, lr=1e-12, batch_size=64)
    batches = [x for x, _ in in_order(images, 64)]
    job = Job(state, 0, aws_seed=3)
    for one, lowest, highest in ((job, 1.5, 8.0), (plainly(job), 0.9, 1.1)):
        left = train(net, one, recipe, images).state
        fresh = reset_batch_norm(net, left, batches)
        for key in ("layers.bn1.running_var", "layers.bn2.running_var"):
            assert lowest < (left[key] / fresh[key]).median() < highest
        metrics = evaluate(net, [left, fresh], images)
        assert (abs(metrics[0].loss - metrics[1].loss) > 0.01) == (one is job)


# -------------------------------------------------------------------------- its draws


@pytest.mark.parametrize(("name", "n"), [("mlp_bn", 7), ("mlp_ln", 3), ("resnet8", 2)])
def test_runs_of_aws_together_equal_those_one_by_one(name, n, images):
    """Each with its own draws; a plain run among them stays plain."""
    jobs = some_jobs(name, n)
    jobs[1] = plainly(jobs[1])
    together = train_many(net_of(name), jobs, RECIPE, images)
    for job, trained in zip(jobs, together, strict=True):
        assert same(trained.state, train(net_of(name), job, RECIPE, images).state)


def test_the_draws_have_a_seed_of_their_own(images):
    net = net_of("mlp_bn")
    (job,) = some_jobs("mlp_bn", 1)
    first = train(net, job, RECIPE, images).state
    torch.manual_seed(12345)
    assert same(first, train(net, job, RECIPE, images).state)
    other = Job(job.state, job.seed, job.mask, aws_seed=job.aws_seed + 1)
    assert not same(first, train(net, other, RECIPE, images).state)


def test_draws_are_uniform_between_zero_and_one_and_of_seed_and_epoch_alone():
    drawn = norms.draws(3, 5, 10_000)
    assert torch.equal(drawn, norms.draws(3, 5, 10_000))
    assert drawn.min() >= 0
    assert drawn.max() < 1
    quantiles = drawn.quantile(torch.linspace(0, 1, 11))
    torch.testing.assert_close(quantiles, torch.linspace(0, 1, 11), atol=0.02, rtol=0)
    for other in (norms.draws(4, 5, 10_000), norms.draws(3, 6, 10_000)):
        assert abs(torch.corrcoef(torch.stack([drawn, other]))[0, 1]) < 0.05


def test_the_draws_do_not_come_from_the_numbers_that_order_the_data(images):
    """Not even where a run's two seeds are the same."""
    made, seeded = [], torch.Generator.manual_seed

    class Noted(torch.Generator):
        def manual_seed(self, seed: int) -> torch.Generator:
            made.append(seed)
            return seeded(self, seed)

    with patch.object(torch, "Generator", Noted):
        norms.draws(3, 5, 10)
        EpochPlan.draw([3], 5, images, augment=False)
    assert len(set(made)) == 2


def test_aws_interrupted_ends_in_the_same_bytes(images, tmp_path):
    net = net_of("mlp_bn")
    (job,) = some_jobs("mlp_bn", 1)
    recipe = Recipe(epochs=3, lr=0.1, batch_size=64, schedule="constant")
    expected = train(net, job, recipe, images)
    kept = Job(job.state, job.seed, job.mask, checkpoint=tmp_path / "run", aws_seed=job.aws_seed)
    done = 0

    def interrupt(epochs: int) -> None:
        nonlocal done
        done += epochs
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(net, kept, recipe, images, progress=interrupt, checkpoint_seconds=0)
    assert kept.checkpoint.is_file()
    resumed = train(net, kept, recipe, images)
    assert same(resumed.state, expected.state)
    assert resumed.losses == expected.losses


# -------------------------------------------------------------------------- where it cannot be


@pytest.mark.parametrize(
    ("net", "name"),
    [
        (net_of("mlp"), "MLP"),
        (models.build("vgg11", (1, 16, 16), 10), "VGG11"),
        (nn.Sequential(nn.Flatten(), nn.BatchNorm1d(196, affine=False), nn.Linear(196, 10)), "Seq"),
    ],
)
def test_a_net_without_norm_layers_to_interpolate_is_refused(net, name, images):
    job = Job(net.state_dict(), 0, aws_seed=4)
    with pytest.raises(InputError, match=f"aws_seed = 4: {name}.* no batch or layer norm"):
        train_many(net, [plainly(job), job], RECIPE, images)


def test_the_inits_of_norm_layers_are_those_they_begin_with():
    for name in (*NORMED, "resnet20", "vgg11_bn"):
        net = models.build(name, (1, 16, 16), 10)
        inits = norms.inits(net)
        state = net.state_dict()
        assert all(torch.equal(state[n], torch.full_like(state[n], v)) for n, v in inits.items())
        others = [n for n, p in net.named_parameters() if p.ndim == 1 and n not in inits]
        assert others == ["classifier.bias"] or name == "vgg11_bn"


def test_a_frozen_norm_layer_stays_frozen(images):
    net = net_of("resnet8")
    net.stem.bn.weight.requires_grad_(False)
    trained = train(net, Job(net.state_dict(), 0, aws_seed=4), RECIPE, images)
    assert torch.equal(trained.state["stem.bn.weight"], net.stem.bn.weight)
    assert not torch.equal(trained.state["stem.bn.bias"], net.stem.bn.bias)


# -------------------------------------------------------------------------- on a GPU


@pytest.fixture
def graphed(monkeypatch):
    prefer_graphs(monkeypatch)
    yield graphs._chosen
    graphs._chosen.clear()


@pytest.mark.parametrize("name", ["mlp_bn", "resnet8"])
def test_aws_on_a_pretended_gpu_is_that_of_the_cpu(name, images, graphed):
    jobs = some_jobs(name, 3)
    expected = train_many(net_of(name), jobs, RECIPE, images)
    with pretended_gpu():
        found = train_many(net_of(name), jobs, RECIPE, images.to("cuda"))
    for a, b in zip(found, expected, strict=True):
        assert same(a.state, b.state)
        assert a.losses == b.losses
    assert list(graphed.values()) == ([(graphs.Graphed, 3)] if name == "resnet8" else [])


@pytest.mark.parametrize("name", ["mlp_bn", "resnet8"])
def test_a_step_of_aws_waits_for_nothing(name, images, graphed):
    """Twice as many steps send no more to the GPU, and ask no more of it."""
    recipe, crossed = Recipe(epochs=1, lr=0.05, batch_size=32), []
    for samples in (64, 128, 256):
        with pretended_gpu() as gpu:
            before = gpu.crossed
            train_many(net_of(name), some_jobs(name, 2), recipe, images.head(samples).to("cuda"))
            crossed.append(gpu.crossed - before)
    assert crossed[1] == crossed[2] > 0  # the first has to look at the machine, too

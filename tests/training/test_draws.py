"""What a network draws itself, dropout, is its run's own: repeatable, resumable, undisturbed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rebasin_utils.landscape.interpolation import reset_batch_norm
from rebasin_utils.nets import models
from rebasin_utils.training import train as training
from rebasin_utils.training.draws import draws
from rebasin_utils.training.recipes import Recipe
from rebasin_utils.training.train import Job, train, train_many

RECIPE = Recipe(epochs=2, lr=0.02, batch_size=64)


class Dropping(nn.Module):
    """A convolution, a batch norm and two kinds of dropout: a module's and a function's."""

    def __init__(self, rate: float = 0.5):
        super().__init__()
        self.rate = rate
        self.conv, self.norm = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.dropout, self.fc = nn.Dropout2d(rate), nn.Linear(8 * 144, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.norm(self.conv(x)).relu()).flatten(1)
        return self.fc(F.dropout(x, self.rate, self.training))


@pytest.fixture
def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Dropping()


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(t, second[name]) for name, t in first.items())


def test_only_what_draws_is_said_to_draw(net, images):
    assert draws(net, images)
    assert not draws(Dropping(0.0), images)
    assert not any(
        draws(models.build(name, images.shape, 10), images) for name in ("mlp", "resnet8")
    )


def test_a_run_draws_the_same_again_and_nothing_from_the_process(net, images):
    before = torch.get_rng_state()
    first = train(net, Job(net.state_dict(), 3), RECIPE, images)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    again = train(net, Job(net.state_dict(), 3), RECIPE, images)
    assert first.losses == again.losses
    assert same(first.state, again.state)


def test_what_is_drawn_differs_by_seed_epoch_and_step(net, images, monkeypatch):
    drawn = []

    class Noted(nn.Dropout2d):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[0] == RECIPE.batch_size:
                drawn.append(torch.get_rng_state())
            return super().forward(x)

    net.dropout = Noted(0.5)
    train_many(net, [Job(net.state_dict(), seed) for seed in (3, 4)], RECIPE, images)
    steps = len(images) // RECIPE.batch_size
    assert len({state.numpy().tobytes() for state in drawn}) == len(drawn) == 2 * 2 * steps


def test_runs_in_company_draw_as_alone(net, images):
    jobs = [Job(net.state_dict(), seed) for seed in (3, 4, 5)]
    for found, job in zip(train_many(net, jobs, RECIPE, images), jobs, strict=True):
        assert same(found.state, train(net, job, RECIPE, images).state)


def test_a_run_stopped_within_an_epoch_ends_in_the_same_bytes(net, images, tmp_path, monkeypatch):
    expected = train(net, Job(net.state_dict(), 3), RECIPE, images)
    left, losses = 6, training.Single.losses

    def stopped(self, x, y):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return losses(self, x, y)

    monkeypatch.setattr(training.Single, "losses", stopped)
    job = Job(net.state_dict(), 3, checkpoint=tmp_path / "checkpoint")
    with pytest.raises(KeyboardInterrupt):
        train(net, job, RECIPE, images, checkpoint_seconds=0)
    left = 2
    resumed = train(net, job, RECIPE, images)
    assert left == 0
    assert resumed.losses == expected.losses
    assert same(resumed.state, expected.state)


def test_statistics_are_measured_without_dropout(net, images):
    """The released code of Oh et al. measures an EfficientNet's with it."""
    x = images.normalised(images.pixels)
    first, again = (reset_batch_norm(net, net.state_dict(), [x]) for _ in range(2))
    assert same(first, again)
    net.norm, net.later = nn.Identity(), nn.BatchNorm1d(10)
    net.fc = nn.Sequential(net.fc, net.later)
    reset = reset_batch_norm(net, net.state_dict(), [x])
    with torch.no_grad():
        mean = net.eval().fc[0](net.conv(x).relu().flatten(1)).mean(0)
    torch.testing.assert_close(reset["later.running_mean"], mean, atol=1e-5, rtol=1e-4)

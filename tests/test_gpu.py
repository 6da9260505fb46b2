"""What is computed on a GPU stays there, seen on one that is pretended."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from pretended_gpu import pretended_gpu

from rebasin_utils import models, runner
from rebasin_utils.data import SOURCES
from rebasin_utils.masks import dense_mask, prunable
from rebasin_utils.study import Study
from rebasin_utils.training import Job, Recipe, train_many


def test_the_pretended_gpu_minds_what_a_real_one_does():
    with pretended_gpu() as gpu:
        there = torch.ones(3, device="cuda")
        assert (there + 1).device.type == "cuda"
        with pytest.raises(RuntimeError, match="two devices"):
            there + torch.ones(3)
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        before = gpu.crossed
        there.sum().item(), there.tolist(), there.cpu(), there.copy_(torch.ones(3))
        assert gpu.crossed == before + 4


@pytest.mark.parametrize("model", ["mlp", "resnet8"])
def test_a_study_on_a_gpu_leaves_nothing_on_the_cpu(model, tiny, tmp_path):
    """All stages; the pretended GPU computes what the CPU does."""
    less = dict(pool=4, test_limit=100, alphas=(0.0, 0.5, 1.0), paths_to_every_round=False)
    settings = tiny.with_values(
        model=model, rewind_epochs=(1,), methods=("lth", "permuted"), **less
    )
    tables = []
    for device, entered in (("cpu", nullcontext()), ("cuda", pretended_gpu())):
        with entered:
            study = Study(settings, tmp_path / device, device)
            runner.run(study, cluster=None, quiet=True)
            assert study.missing() == []
            tables.append(study.results())
    here, there = (table.drop(columns=["seconds", "device"]) for table in tables)
    assert here.equals(there)
    assert set(tables[1]["device"]) == {"pretended"}


@pytest.mark.parametrize("model", ["mlp", "resnet8"])
@pytest.mark.parametrize("augment", [False, True])
def test_a_step_of_training_waits_for_nothing(model, augment, images):
    """Twice as many steps send no more to the GPU, and ask no more of it."""
    net = models.build(model, images.shape, 10)
    job = Job(net.state_dict(), 0, dense_mask(net.state_dict(), prunable(net)))
    recipe = Recipe(epochs=1, lr=0.05, batch_size=32)
    crossed = []
    for samples in (64, 128, 256):
        some = replace(images.head(samples), source=SOURCES["fashion-mnist"])
        with pretended_gpu() as gpu:
            before = gpu.crossed
            train_many(net, [job], recipe, some.to("cuda"), augment=augment)
            crossed.append(gpu.crossed - before)
    assert crossed[1] == crossed[2] > 0  # the first has to look at the machine, too

"""What signed-mask runs gain from being trained together: one table.

    python benchmarks/signs.py                  a minute on one core
    python benchmarks/signs.py --device cuda    on a GPU

Twelve masked runs of an MLP with batch norm, plainly and by AWS, from twelve inits with twelve
masks: together, and one after the other, in turn. Times are CPU seconds of one thread, and on a GPU
seconds of the clock; the largest difference is over all weights of all runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from report import Row, as_markdown, device_argument, keep_memory, machine

from rebasin_utils.nets import data, masks, models
from rebasin_utils.training.recipes import Recipe
from rebasin_utils.training.train import Job, Trained, train_many

RUNS, ROUNDS = 12, 3


def jobs(aws: bool) -> list[Job]:
    """A run an init, each with the tenth of its weights that are largest."""
    found = []
    for seed in range(RUNS):
        model = models.build("mlp_bn", (1, 14, 14), 10, seed=seed)
        state = model.state_dict()
        whole = masks.dense_mask(state, masks.prunable(model, include_classifier=False))
        mask = masks.global_magnitude(state, whole, masks.count(whole) // 10)
        found.append(Job(masks.apply(mask, state), seed, mask, aws_seed=seed if aws else None))
    return found


def compared(aws: bool, device: torch.device) -> Row:
    """The shortest of several rounds in turn, of either way."""
    clock: Callable[[], float] = time.process_time if device.type == "cpu" else time.perf_counter
    images = data.load("fashion-mnist-10k", "train", pool=2).to(device)
    model = models.build("mlp_bn", (1, 14, 14), 10)
    recipe = Recipe(epochs=2, lr=0.1, schedule="constant")
    seconds: dict[str, list[float]] = {"together": [], "one by one": []}
    done: dict[str, list[Trained]] = {}
    for _ in range(ROUNDS):
        for way, lots in (("together", [jobs(aws)]), ("one by one", [[j] for j in jobs(aws)])):
            begin = clock()
            done[way] = [t for lot in lots for t in train_many(model, lot, recipe, images)]
            seconds[way].append(clock() - begin)  # the states are here: nothing is waited for
    both = zip(done["together"], done["one by one"], strict=True)
    difference = max(
        (a.state[n] - b.state[n]).abs().max().item()
        for a, b in both
        for n in a.state
        if a.state[n].is_floating_point()
    )
    shortest = {way: min(each) for way, each in seconds.items()}
    return {
        "runs": f"{RUNS}, {'AWS' if aws else 'plain'}",
        **{f"{way}, s": each for way, each in shortest.items()},
        "ratio": shortest["one by one"] / shortest["together"],
        "largest difference": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", type=device_argument, default="cpu", help="cpu (default) or cuda"
    )
    device = parser.parse_args().device
    torch.set_num_threads(1)
    keep_memory()
    print(as_markdown([compared(aws, device) for aws in (False, True)]))
    print("\n" + ", ".join(f"{k} {v}" for k, v in machine().items()))


if __name__ == "__main__":
    main()

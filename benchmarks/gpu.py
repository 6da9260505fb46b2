"""What only a GPU can show, by one command and in one report (`make gpu`, under twenty minutes).

(a) the tests of training on the GPU: a run trains what it does on a CPU, resumes to the same bytes
(b) whole studies on the GPU against the CPU's, and run twice
(c) the training benchmark: the loops that people write against ours
(d) the ways to train many residual nets that were tried
(e) what ImageNet asks for: streamed images in pinned memory, bf16, and ranks over NCCL
(f) signed masks and AWS: runs together against one by one

Each part is a process of its own; one that fails or runs out of its time is reported as such.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from report import as_markdown, machine

from rebasin_utils.nets import data, models
from rebasin_utils.running import ranked
from rebasin_utils.running.runner import run
from rebasin_utils.study.presets import preset
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.study import Study
from rebasin_utils.training.stacking import Single

HERE = Path(__file__).parent

#: title, command, seconds
PARTS = {
    "a": (
        "The tests of training, on the GPU",
        ["-m", "pytest", "--device", "cuda", "-q", "-p", "no:cacheprovider",
         str(HERE.parent / "tests" / "training" / "test_training.py")],
        180,
    ),
    "b": ("Whole studies: on the GPU, again, and on the CPU", [str(HERE / "gpu.py"), "--studies"],
          240),
    "c": ("Training", [str(HERE / "training.py"), "--device", "cuda", "--quick"], 330),
    "d": ("What there is to try", [str(HERE / "gpu_candidates.py"), "--runs", "16",
                                   "--seconds", "0.5"], 240),
    "e": ("At scale", [str(HERE / "gpu.py"), "--scale"], 120),
    "f": ("Signed masks, trained together", [str(HERE / "signs.py"), "--device", "cuda"], 90),
}  # fmt: skip


def studies() -> list[Settings]:
    """Small studies with every stage: one whose nets are stacked, one of residual nets."""
    (smoke,) = preset("smoke")
    residual = {"name": "smoke-resnet8", "model.name": "resnet8", "seeds": 2, "data.pool": 4}
    return [smoke, smoke.with_values(**residual)]


def compared(settings: Settings, root: Path) -> dict[str, object]:
    """Seconds on the GPU and on the CPU, and how far the tables are apart."""
    tables, seconds = {}, {}
    for name, device in (("GPU", "cuda"), ("GPU again", "cuda"), ("CPU", "cpu")):
        study = Study(settings, root / f"{settings.name}-{name}", device)
        begin = time.monotonic()
        run(study, workers=1, quiet=True)
        seconds[name] = time.monotonic() - begin
        tables[name] = study.results().set_index("artifact")["test_accuracy"]
    apart = 100 * (tables["GPU"] - tables["CPU"])
    return {
        "study": settings.name,
        "nets": len(apart),
        **{f"{name} (s)": value for name, value in seconds.items()},
        "the same again": bool((tables["GPU"] == tables["GPU again"]).all()),
        "GPU − CPU, mean (pp)": apart.mean(),
        "largest (pp)": apart.abs().max(),
    }


def at_scale(device: torch.device, steps: int, batch: int, side: int) -> str:
    """ResNet50 stepped on streamed images, in float32 and bf16; ranks over NCCL."""
    data.load("imagenet-miniature", "train")  # writes it where it is not there
    folder = data.data_root() / data.SOURCES["imagenet-miniature"].folder
    reading = data.Reading(side=side, crop="resized")
    images = data.load(str(folder), "train", reading=reading).to(device)
    net = models.build("resnet50", images.shape, 1000)
    few = list(islice(data.training_batches(images, batch, True).epoch([0], 0), 4))
    rows = []
    for precision in ("float32", "bf16"):
        single = Single(net, [net.state_dict()], device, precision=precision)
        losses = [single.losses(*few[step % len(few)]) for step in range(steps)]
        if device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.monotonic()
        losses += [single.losses(*few[step % len(few)]) for step in range(steps)]
        loss = losses[-1].item()  # waits for the GPU
        seconds = (time.monotonic() - begin) / steps
        (state,) = single.states()
        float32 = all(t.dtype != torch.bfloat16 for t in state.values())
        rows.append(
            {
                "precision": precision,
                "images/s": batch / seconds,
                "loss": loss,
                "state in float32": float32,
            }
        )
    text = as_markdown(rows) + "\n\n"
    for workers in (0, 2, 8):
        some = replace(images, loader_workers=workers)
        begin = time.monotonic()
        n = sum(x.shape[1] for x, _ in data.training_batches(some, batch, True).epoch([0], 0))
        text += f"{workers} workers, to {device}: {n / (time.monotonic() - begin):,.0f} images/s\n"
    return text + "\n" + _by_ranks(device)


def _by_ranks(device: torch.device) -> str:
    """The smoke study by two ranks against one process; NCCL wants a GPU for each."""
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        return "NCCL: not shown, there is one GPU"
    few = {"seeds": 1, "sparse.methods": (), "paths.alphas": (), "model.name": "mlp_bn"}
    settings = preset("smoke")[0].with_values(**few)
    with tempfile.TemporaryDirectory() as root:
        alone = Study(settings, Path(root) / "alone", str(device))
        ranked_study = Study(settings, Path(root) / "ranked", str(device))
        run(alone, cluster=None, quiet=True)
        digests = [node.key.digest for node in alone.nodes("dense")]
        where = (settings.model_dump_json(), ranked_study.store.root, device.type)
        ranked.compute(*where, digests, 2)
        apart = max(
            (tensor - ranked_study.tensors(node)[name]).abs().max().item()
            for node in alone.nodes("dense")
            for name, tensor in alone.tensors(node).items()
        )
    return f"two ranks against one process, largest difference of a weight: {apart:.1e}"


def part(title: str, command: list[str], limit: int) -> str:
    """One part of the report."""
    begin = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, timeout=limit, cwd=HERE
        )
        said, ended = done.stdout, "" if done.returncode == 0 else f"exit code {done.returncode}"
        said += "\n".join(done.stderr.splitlines()[-3:]) if done.returncode else ""
    except subprocess.TimeoutExpired as late:
        said, ended = (late.stdout or b"").decode(), f"stopped after {limit} s"
    took = f"{time.monotonic() - begin:.0f} s" + (f", **{ended}**" if ended else "")
    lines = [line for line in said.splitlines() if not line.startswith("# ")]
    text = "\n".join(line.replace("## ", "### ", 1) for line in lines).strip()
    return f"## {title}\n\n{took}\n\n{text}\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=HERE / "gpu.md", help="the report")
    parser.add_argument("--studies", action="store_true", help="print part (b) and nothing else")
    parser.add_argument("--scale", action="store_true", help="print part (e) and nothing else")
    options = parser.parse_args()
    if options.scale and not torch.cuda.is_available():  # that it can be run, at least
        print(at_scale(torch.device("cpu"), steps=1, batch=16, side=64))
        return
    if not torch.cuda.is_available():
        sys.exit("gpu.py: torch sees no GPU here")
    if options.scale:
        print(at_scale(torch.device("cuda"), steps=20, batch=128, side=224))
        return
    if options.studies:
        with tempfile.TemporaryDirectory() as root:
            print(as_markdown([compared(settings, Path(root)) for settings in studies()]))
        return
    head = ", ".join(f"{k} {v}" for k, v in machine().items())
    report = f"# On a GPU\n\n{head}.\n"
    for letter in options.parts:
        report += "\n" + part(*PARTS[letter])
        options.out.write_text(report)
        print(f"({letter}) done: {options.out}", flush=True)


if __name__ == "__main__":
    main()

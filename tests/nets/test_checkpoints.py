"""A user's checkpoint is read or refused in a sentence; what is written is read back as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import nn

from rebasin_utils.errors import InputError
from rebasin_utils.nets import checkpoints, models


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return models.build("resnet8", (1, 16, 16), 3, seed=0)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Of another init than `model`'s."""
    return models.build("resnet8", (1, 16, 16), 3, seed=1).state_dict()


def same(first, second) -> bool:
    return list(first) == list(second) and all(torch.equal(first[n], second[n]) for n in first)


def saved(path: Path, content: object) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    return path


# -------------------------------------------------------------------------- in


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("a.safetensors", lambda s: s),
        ("a.pt", lambda s: s),
        ("a.pth", lambda s: dict(reversed(s.items()))),
        ("a.ckpt", lambda s: {"state_dict": s, "epoch": 7}),
        ("a.pt", lambda s: {"model": {f"module.{n}": t for n, t in s.items()}, "best": 0.9}),
        ("a.pt", lambda s: {f"_orig_mod.{n}": t for n, t in s.items()}),
        ("a.pt", lambda s: {n: t for n, t in s.items() if "num_batches" not in n}),
        ("a.pt", lambda s: {n: t.double() for n, t in s.items()}),
    ],
)
def test_a_checkpoint_is_read_as_the_state_of_the_model(tmp_path, model, state, name, wrap):
    before = {n: t.clone() for n, t in model.state_dict().items()}
    read = checkpoints.read(saved(tmp_path / name, wrap(state)), model)
    assert same(read, state)
    assert all(read[n].dtype == t.dtype for n, t in before.items())
    assert same(model.state_dict(), before)


class Code:
    """Its pickle calls whatever it likes."""

    def __reduce__(self):
        return exec, ("raise SystemExit('this must not run')",)


def without(state, name):
    return {n: t for n, t in state.items() if n != name}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda s: without(s, "classifier.bias"), ["net than ResNet", "lacks classifier.bias"]),
        (lambda s: without(without(s, "classifier.bias"), "stem.bn.bias"), ["and 1 more"]),
        (lambda s: s | {"head.bias": torch.zeros(3)}, ["another net", "has head.bias"]),
        (lambda s: s | {"classifier.bias": torch.zeros(4)}, ["classifier.bias", "[4]", "[3]"]),
        (lambda s: s | {"classifier.bias": torch.tensor([1, 2, torch.nan])}, ["not finite"]),
        (lambda s: s | {"classifier.bias": 3}, ["classifier.bias is a int"]),
        (lambda s: {"state_dict": s, "what": Code()}, ["pickled code", "state_dict()"]),
        (lambda s: models.build("mlp", (1, 4, 4), 3), ["pickled code", "state_dict()"]),
        (lambda s: [1], ["it is a list"]),
    ],
)  # fmt: skip
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, model, state, change, parts):
    path = saved(tmp_path / "a.pt", change(dict(state)))
    refused(lambda: checkpoints.read(path, model), f"checkpoint = {str(path)!r}: ", parts)


def refused(call, begin: str, parts: list[str]) -> None:
    with pytest.raises(InputError) as raised:
        call()
    sentence = str(raised.value)
    assert sentence.startswith(begin)
    assert "\n" not in sentence
    for part in parts:
        assert part in sentence


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, model, state, name):
    path = tmp_path / name
    refused(lambda: checkpoints.read(path, model), "checkpoint = ", ["cannot be read"])
    path.write_text("text")
    refused(lambda: checkpoints.read(path, model), "checkpoint = ", ["neither safetensors nor"])
    path.write_bytes(saved(path, dict(state)).read_bytes()[:-1000])
    refused(lambda: checkpoints.read(path, model), "checkpoint = ", ["neither safetensors nor"])
    path.write_bytes(b"")
    refused(lambda: checkpoints.read(path, model), "checkpoint = ", ["neither safetensors nor"])


# -------------------------------------------------------------------------- out


def test_what_is_written_is_loaded_by_the_line_that_says_how(tmp_path, model, state):
    things = {
        "net": state,
        "mask": {"a.weight": torch.tensor([[True, False]]).T},
        "signed mask": {"a.weight": torch.tensor([-1, 0, 1], dtype=torch.int8)},
        "permutation": {"stem/bn": torch.tensor([2, 0, 1])},
    }
    names = {"mask": "mask", "signed mask": "signs", "permutation": "permutation"}
    for kind, tensors in things.items():
        path = tmp_path / f"{kind}.safetensors"
        line = checkpoints.write(path, tensors, kind)
        scope = {"safetensors": safetensors, "net": models.build("resnet8", (1, 16, 16), 3)}
        exec(line, scope)
        found = scope["net"].state_dict() if kind == "net" else scope[names[kind]]
        assert same(dict(sorted(found.items())), dict(sorted(tensors.items())))
        assert all(found[n].dtype == t.dtype for n, t in tensors.items())
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == {"kind": kind, "load": line}
    assert same(checkpoints.read(tmp_path / "net.safetensors", model), state)


def test_tensors_that_share_memory_are_written(tmp_path):
    row = torch.arange(6.0)
    checkpoints.write(tmp_path / "a.safetensors", {"a": row, "b": row[2:], "c": row}, "net")
    read = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert same(dict(sorted(read.items())), {"a": row, "b": row[2:], "c": row})


def test_a_file_that_cannot_be_written_is_refused(tmp_path):
    write, tensors = checkpoints.write, {"a": torch.zeros(1)}
    refused(lambda: write(tmp_path / "a.pt", tensors, "net"), "file = ", [".safetensors"])
    nowhere = tmp_path / "nowhere" / "a.safetensors"
    refused(lambda: write(nowhere, tensors, "net"), "file = ", ["cannot be written", "No such"])

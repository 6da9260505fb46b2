"""One lot of a study computed by several ranks, which a worker starts where it has several GPUs.

    python -m torch.distributed.run … -m rebasin_utils.running.ranked FILE

FILE holds, as JSON, the settings, the store, the device and the digests of the nodes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rebasin_utils.errors import InputError, RunError, StoreError
from rebasin_utils.running import crew
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.store import Store
from rebasin_utils.study.study import Study

#: What a rank may say, first, of what went wrong.
_SAID = {kind.__name__: kind for kind in (InputError, StoreError, RunError)}


def compute(settings: str, root: Path, device: str, digests: Sequence[str], count: int) -> None:
    """Have `count` ranks compute these nodes; they go on from their last checkpoints.

    Raises:
        InputError, StoreError, RunError: what the ranks said.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump([settings, str(root), device, list(digests)], file)
        file.flush()
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={count}", "-m", "rebasin_utils.running.ranked", file.name]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return
    for line in done.stderr.splitlines():
        kind, colon, why = line.partition(": ")
        if colon and kind in _SAID:
            raise _SAID[kind](why)
    last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
    raise RunError(f"{count} ranks: {last[0]}")


def main(file: Path) -> None:
    settings, root, device, digests = json.loads(file.read_text())
    study = Study(Settings.model_validate_json(settings), Store(Path(root)), device)
    nodes = [node for node in study.plan.all_nodes() if node.key.digest in digests]

    def here() -> int:
        study.compute(nodes)
        return len(nodes)

    try:
        crew.compute([study], here)
    except (InputError, RunError) as error:
        kind = next(kind for kind in (StoreError, InputError, RunError) if isinstance(error, kind))
        sys.exit(f"{kind.__name__}: {error}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

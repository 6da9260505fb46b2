"""What `test_crew` runs under `torchrun`: ranked_study.py STORE [PREVIOUS_LIFE] [SETTING=VALUE …].

Ranks but the first get a store that is not there and must not come to be. With a PREVIOUS_LIFE in
seconds one of the ranks is killed after it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from rebasin_utils.errors import InputError, RunError
from rebasin_utils.running.runner import run
from rebasin_utils.study import presets
from rebasin_utils.study.settings import assignments
from rebasin_utils.study.study import Study

rank = int(os.environ["RANK"])
store, life, *changes = sys.argv[1:]
if life != "whole" and rank == int(float(life) * 1000) % 2:
    threading.Timer(float(life), os.kill, (os.getpid(), signal.SIGKILL)).start()
if "differ" in changes:
    changes = [f"dense.epochs={2 + rank}"]
settings = presets.changed("smoke", {"seeds": 1, **assignments(changes)})
path = Path(store) if rank == 0 else Path(store).with_name("not-mine")
try:
    made = run([Study(s, path, "cpu") for s in settings], quiet=True)
except (InputError, RunError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
assert rank == 0 or made == 0
assert rank == 0 or not path.exists()
print(f"rank {rank}: {made} made")

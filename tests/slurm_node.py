"""A real Slurm for a test: Debian's daemons as a cluster of one node, this machine, on loopback.

Its two GPUs are pretended: plain files, so that jobs can ask for them and are dealt them.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "squeue", "scontrol")

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
ReturnToService=2
SchedulerParameters=sched_interval=1,sched_min_interval=0
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=4000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """What this machine lacks to be a Slurm node; None if nothing."""
    if lacking := [name for name in NEEDED if shutil.which(name) is None]:
        return f"no {', '.join(lacking)}: apt-get install slurmctld slurmd slurm-client munge"
    if os.geteuid() != 0:
        return "Slurm's daemons want root"
    return None


def ask(*command: str) -> str:
    """What a Slurm command prints; it has ten seconds."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout


@contextmanager
def running(folder: Path) -> Iterator[Path]:
    """The cluster, up while this lasts; yields its configuration file."""
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    for gpu in ("gpu0", "gpu1"):
        (folder / gpu).touch()
    gpus = (f"NodeName={host} Name=gpu File={folder}/gpu{i}\n" for i in range(2))
    (folder / "gres.conf").write_text("".join(gpus))
    configuration = folder / "slurm.conf"
    cores = os.cpu_count()
    text = CONFIGURATION.format(host=host, folder=folder, cores=cores, ports=_free_ports(2))
    configuration.write_text(text)
    environment = os.environ | {"SLURM_CONF": str(configuration)}
    munge = [f"--{part}-file={folder}/munge.{part}" for part in ("key", "pid", "log", "seed")]
    with ExitStack() as daemons:
        for command in (
            ["munged", "--force", "--foreground", f"--socket={folder}/munge.socket", *munge],
            ["slurmctld", "-D"],
            ["slurmd", "-D"],
        ):
            daemons.enter_context(_daemon(command, folder, environment))
            if command[0] == "munged":
                _wait(lambda: (folder / "munge.socket").exists(), "munged")
        os.environ["SLURM_CONF"] = str(configuration)
        try:
            _wait(lambda: "idle" in ask("sinfo", "--noheader", "--format=%T"), "the node")
            yield configuration
        finally:
            subprocess.run(["scancel", "--user=root"], timeout=10, check=False)
            _wait(lambda: not ask("squeue", "--noheader"), "the jobs' end")
            del os.environ["SLURM_CONF"]


@contextmanager
def _daemon(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[None]:
    with (folder / f"{command[0]}.out").open("w") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def _wait(condition, what: str, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if condition():
                return
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            pass
        time.sleep(0.2)
    raise TimeoutError(f"{what}: not within {seconds} s")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]

"""Where tasks are executed: local workers, Slurm jobs described in a YAML file, or a scheduler.

Every worker is a process of one thread, because PyTorch's random numbers and CUDA's context belong
to a process. Workers are restarted when they die; everything between them goes over TLS with
certificates that live as long as the cluster, because what arrives is unpickled. Dask is imported
where something is started: most processes that import this module start nothing.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import psutil
import torch
import yaml
from dask.utils import parse_bytes
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from rebasin_utils.errors import InputError, Interrupted, RunError
from rebasin_utils.nets.devices import KEEP_MEMORY

if TYPE_CHECKING:
    from distributed import Client, SpecCluster

ADDRESS = re.compile(r"(tcp|tls|ucx|ws|wss)://.+")
WALLTIME = re.compile(r"(\d+-)?\d{1,3}:\d{2}:\d{2}")

#: Seconds to wait for a scheduler that is said to be there.
PATIENCE = 15


def _memory(text: str) -> str:
    try:
        size = parse_bytes(text)
    except ValueError:
        size = 0
    if size < 10**8:
        raise ValueError("must be at least 100 MB, as in 4GiB")
    return text


def _walltime(text: Any) -> str:
    if not isinstance(text, str) or not WALLTIME.fullmatch(text):  # bare 1:00:00 is YAML's 3600
        raise ValueError("must be hours:minutes:seconds in quotes, as in '12:00:00'")
    if _seconds(text) < 60:
        raise ValueError("must be at least a minute")
    return text


def _one_line(text: str) -> str:
    if "\n" in text:
        raise ValueError("must be a single line")
    return text


Memory = Annotated[str, AfterValidator(_memory)]
Walltime = Annotated[str, BeforeValidator(_walltime)]
Word = Annotated[str, Field(pattern=r"^[\w.,:@/-]+$")]
Line = Annotated[str, AfterValidator(_one_line)]


class _Description(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    allowed_failures: int = Field(
        3, ge=0, le=100, description="deaths of workers after which a task counts as failed"
    )


class Local(_Description):
    """Worker processes on this machine; on a GPU they are dealt to the GPUs in turn."""

    kind: Literal["local"] = "local"
    workers: int = Field(ge=1, le=1024, description="processes")
    memory: Memory | None = Field(None, description="of a worker; above it, it is restarted")


class Slurm(_Description):
    """Jobs of a Slurm cluster; the store must be on a disk that they share."""

    kind: Literal["slurm"]
    jobs: int = Field(ge=1, le=10_000, description="how many run at once; replaced as they end")
    workers: int = Field(1, ge=1, le=128, description="processes in a job; they share its GPU")
    cores: int = Field(1, ge=1, le=1024, description="of a job")
    memory: Memory = Field(description="of a job")
    walltime: Walltime = Field(description="of a job; runs go on in the next one")
    gpus: int = Field(
        0, ge=0, le=64, description="of a job; several train every run together, a rank each"
    )
    device: Word = Field("auto", description="what the workers compute on: auto, cpu, cuda")
    partition: Word | None = None
    account: Word | None = None
    interface: Word | None = Field(None, description="network interface, as in ib0")
    directives: tuple[Line, ...] = Field((), description="more #SBATCH lines")
    prologue: tuple[Line, ...] = Field((), description="shell lines before the worker starts")

    @model_validator(mode="after")
    def _several_gpus_are_one_workers(self) -> Slurm:
        if self.gpus > 1 and self.workers > 1:
            raise ValueError(
                f"workers = {self.workers}: must be 1 where a job has several GPUs, whose ranks it "
                "starts"
            )
        return self


_DESCRIPTION = TypeAdapter(Annotated[Local | Slurm, Field(discriminator="kind")])


def read(path: Path) -> Local | Slurm:
    """The description of a cluster in a YAML file.

    Raises:
        InputError: it is no such file, or one of its values is not allowed.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cluster = {str(path)!r}: {error.strerror}; {_CHOICES}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"cluster = {str(path)!r}: no YAML ({_first_line(error)})") from None
    if not isinstance(content, dict) or "kind" not in content:
        raise InputError(f"cluster = {str(path)!r}: must have a line kind: local or kind: slurm")
    try:
        return _DESCRIPTION.validate_python(content)
    except ValidationError as error:
        raise InputError(f"{path.name}: {_sentence(error)}") from None


def find(cluster: str | Path) -> Local | Slurm | str:
    """What `cluster` names: the description in a YAML file, or a scheduler's address as it is."""
    if ADDRESS.fullmatch(str(cluster)):
        return str(cluster)
    if Path(cluster).suffix not in (".yaml", ".yml"):
        raise InputError(f"cluster = {str(cluster)!r}: {_CHOICES}")
    return read(Path(cluster))


_CHOICES = (
    "choose none, local, a YAML file that describes a cluster, or a scheduler's address such as "
    "tcp://host:8786"
)


@contextmanager
def connected(where: Local | Slurm | str, device: torch.device, scratch: Path) -> Iterator[Client]:
    """A client of the cluster, which is started before and stopped after, if it is not an address.

    Args:
        device: what local workers compute on.
        scratch: a folder that all workers see, for logs and certificates.

    Raises:
        InputError: nobody answers at the address.
        RunError: the cluster cannot be started.
    """
    import dask
    from distributed import Client

    if isinstance(where, str):
        try:
            client = Client(where, timeout=PATIENCE, set_as_default=False)
        except (OSError, ValueError) as error:
            raise InputError(
                f"cluster = {where!r}: no scheduler answers there ({_first_line(error)})"
            ) from None
        with client:
            yield client
        return
    options = {
        "distributed.scheduler.allowed-failures": where.allowed_failures,
        "distributed.worker.daemon": False,  # else a task could start no processes of its own
        "distributed.scheduler.worker-saturation": 1.0,  # who is free takes the next task
        "distributed.worker.profile.enabled": False,  # it interrupts the training a hundred times/s
        # Looked at fifty times a second, idle event loops take 4% of two cores.
        "distributed.admin.tick.interval": "1s",
        "distributed.admin.system-monitor.interval": "2s",
        # Dask has malloc hand back freed memory at once, which makes training 1.7 times as long.
        **{f"distributed.nanny.pre-spawn-environ.{k}": v for k, v in KEEP_MEMORY.items()},
    }
    if isinstance(where, Local):  # one that starts again takes a while; its nanny must not go
        options["distributed.deploy.lost-worker-timeout"] = "300s"
    with (
        dask.config.set(options),
        _started(where, device, scratch) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@contextmanager
def _started(where: Local | Slurm, device: torch.device, scratch: Path) -> Iterator[SpecCluster]:
    try:
        if isinstance(where, Local):
            cluster = _again_if_killed(lambda: _local(where, device))
        else:
            cluster = _slurm(where, scratch)
    except InputError:
        raise
    except ValueError as error:  # no such network interface
        raise InputError(f"cluster: {_first_line(error)}") from error
    except (OSError, RuntimeError) as error:
        raise RunError(f"the cluster cannot be started: {_first_line(error)}") from error
    with cluster:
        if isinstance(where, Slurm):
            _ask_slurm(cluster.job_script())
            cluster.adapt(minimum_jobs=where.jobs, maximum_jobs=where.jobs)  # replaces what ends
        try:
            yield cluster
        except (KeyboardInterrupt, Interrupted):
            if isinstance(where, Local):
                _kill_workers()  # whatever they were at is in checkpoints; they would finish first
            raise


def _kill_workers() -> None:
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "multiprocessing.resource_tracker" not in " ".join(process.cmdline()):
                process.kill()


def _again_if_killed(start: Callable[[], SpecCluster]) -> SpecCluster:
    """A worker that is killed before it works is no reason to give up at once."""
    for _ in range(2):
        with suppress(RuntimeError):
            return start()
    return start()


@contextmanager
def threads(count: int) -> Iterator[Client]:
    """A client of threads of this process, for tasks that do nothing but wait for processes."""
    from distributed import Client

    with Client(
        processes=False,
        n_workers=1,
        threads_per_worker=count,
        dashboard_address=None,
        memory_limit=None,
        set_as_default=False,
    ) as client:
        yield client


def _local(where: Local, device: torch.device) -> SpecCluster:
    from distributed import Nanny, Scheduler, Security, SpecCluster
    from distributed.system import MEMORY_LIMIT

    security = Security.temporary()
    shared = {"host": "127.0.0.1", "protocol": "tls://", "security": security}
    worker = shared | {"nthreads": 1, "dashboard": False, "silence_logs": logging.CRITICAL}
    worker["memory_limit"] = where.memory or int(MEMORY_LIMIT / where.workers)
    gpus = _gpus(device)
    workers = {
        i: {"cls": Nanny, "options": worker | {"env": _pinned(gpus, i)}}
        for i in range(where.workers)
    }
    scheduler = {"cls": Scheduler, "options": shared | {"dashboard_address": "127.0.0.1:0"}}
    return SpecCluster(
        workers, scheduler, security=security, silence_logs=logging.CRITICAL, name="rebasin"
    )


def _gpus(device: torch.device) -> list[str]:
    """The GPUs that workers are dealt to; none unless they compute on CUDA."""
    if device.type != "cuda":
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else list(map(str, range(torch.cuda.device_count())))
    return names if device.index is None else [names[device.index]]


def _pinned(gpus: list[str], worker: int) -> dict[str, str]:
    return {"CUDA_VISIBLE_DEVICES": gpus[worker % len(gpus)]} if gpus else {}


def _slurm(where: Slurm, scratch: Path) -> SpecCluster:
    """The scheduler, and how its jobs will be; none is submitted yet."""
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError:
        raise InputError(
            "cluster: Slurm needs dask-jobqueue; install it with "
            'pip install "rebasin-utils[cluster]"'
        ) from None
    finally:
        signal.signal(signal.SIGINT, interrupt)  # the import turns Ctrl-C into a silent exit
    from distributed.utils import get_ip_interface

    if where.interface is not None:
        get_ip_interface(where.interface)
    scratch.mkdir(parents=True, exist_ok=True)
    lifetime = int(_seconds(where.walltime) * 0.9)
    exports = [f"export {name}={value}" for name, value in KEEP_MEMORY.items()]
    return SLURMCluster(
        queue=where.partition,
        account=where.account,
        walltime=where.walltime,
        cores=where.workers,
        job_cpu=max(where.cores, where.workers),
        processes=where.workers,
        memory=where.memory,
        interface=where.interface,
        security=True,
        shared_temp_directory=str(scratch),
        log_directory=str(scratch),
        local_directory=None,
        python=sys.executable,
        job_name="rebasin",
        job_extra_directives=[f"--gres=gpu:{where.gpus}"] * bool(where.gpus)
        + list(where.directives),
        job_script_prologue=[*exports, *where.prologue],
        worker_extra_args=["--lifetime", f"{lifetime}s", "--lifetime-stagger", "30s"],
        scheduler_options={"dashboard_address": "127.0.0.1:0"},
    )


def _ask_slurm(script: str) -> None:
    """Whether Slurm would take such a job; jobs that it refuses would be waited for in silence."""
    try:
        asked = subprocess.run(
            ["sbatch", "--test-only"], input=script, capture_output=True, text=True, timeout=60
        )
    except FileNotFoundError:
        raise InputError("cluster: there is no Slurm here (sbatch is not found)") from None
    except subprocess.TimeoutExpired:
        raise InputError("cluster: Slurm does not answer (sbatch, 60 s)") from None
    if asked.returncode:
        raise InputError(f"cluster: Slurm refuses the job: {' '.join(asked.stderr.split())}")


def _seconds(walltime: str) -> int:
    days, _, clock = walltime.rpartition("-")
    hours, minutes, seconds = map(int, clock.split(":"))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"][1:] or first["loc"]))
    what = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if first["type"] == "missing":
        return f"{where}: must be given"
    if first["type"] == "extra_forbidden":
        kind = {"local": Local, "slurm": Slurm}[first["loc"][0]]
        what = f"no such field; there are {', '.join(kind.model_fields)}"
    if first["type"] == "union_tag_invalid":
        return f"kind = {first['input']['kind']!r}: choose local or slurm"
    return f"{where} = {first['input']!r}: {what}"

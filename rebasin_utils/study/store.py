"""Durable artifacts: what was computed once is never computed, lost or half-written again.

An artifact is a folder `<stage>/<label>-<key>/` with `tensors.safetensors` and `record.json`. Its
key is the hash of everything it depends on: its stage and version, its settings, its parents' keys.
It is written to a temporary folder, synced and renamed, so that it is whole or absent; checksums of
tensors and record are verified when they are read, and a damaged artifact is set aside (never
deleted) and computed again.
Nothing that could execute code is ever read: safetensors and JSON only.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor

from rebasin_utils.errors import InputError, StoreError
from rebasin_utils.files import replace_synced, sync_folder, write_synced

try:
    import fcntl
except ImportError:  # Windows: nobody can be seen at work there
    fcntl = None

TENSORS, RECORD = "tensors.safetensors", "record.json"


@dataclass(frozen=True)
class Key:
    """The name of an artifact: `stage/label-digest`; the label is for the eye only."""

    stage: str
    label: str
    digest: str

    @classmethod
    def of(
        cls, stage: str, version: int, label: str, settings: Mapping, parents: tuple[Key, ...] = ()
    ) -> Key:
        """The key of what `stage` makes from JSON-able `settings` and its parents' artifacts."""
        depends_on = {
            "stage": stage,
            "version": version,
            "settings": settings,
            "parents": [parent.digest for parent in parents],
        }
        text = json.dumps(depends_on, sort_keys=True, allow_nan=False)
        return cls(stage, label, hashlib.sha256(text.encode()).hexdigest()[:16])

    @classmethod
    def at(cls, path: str) -> Key:
        """The key of the artifact whose `path` this is.

        Raises:
            InputError: when no artifact's can be.
        """
        stage, slash, name = path.strip("/").partition("/")
        label, dash, digest = name.rpartition("-")
        if not (slash and dash and stage and label) or "/" in name:
            raise InputError(f"artifact = {path!r}: must be a stage, /, a label, - and a digest")
        return cls(stage, label, digest)

    @property
    def path(self) -> str:
        """The artifact's folder, relative to the store."""
        return f"{self.stage}/{self.label}-{self.digest}"


@dataclass(frozen=True)
class Artifact:
    """One stored result: its record (JSON: metrics, settings, provenance) and its tensors."""

    record: dict
    tensors: dict[str, Tensor]


class Store:
    """A folder of artifacts, shared by processes.

    To be read, it need be neither there nor writable. What reads changes nothing, with one
    exception: a damaged artifact that is come upon is set aside where that is possible, so that the
    next run computes it again.
    """

    def __init__(self, root: Path | str):
        self.root = Path(root).expanduser().absolute()
        self._verified: dict[str, tuple[int, int]] = {}  # files of tensors, as they were then

    def prepare(self) -> None:
        """Make the folder, so that artifacts can be put there.

        Raises:
            InputError: when it cannot be made or written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise InputError(
                f"store = {self.root}: cannot be written ({error.strerror}); choose another folder "
                "with --store or REBASIN_STORE"
            ) from error

    def __contains__(self, key: Key) -> bool:
        return self.record(key) is not None

    def record(self, key: Key) -> dict | None:
        """The record alone; None when it is absent or damaged."""
        try:
            return _read_record(self.root / key.path)
        except _Damaged:
            return None

    def tensors(self, key: Key, prefix: str = "") -> dict[str, Tensor] | None:
        """The tensors whose names begin with `prefix`, or None when it is absent or damaged.

        The checksum is verified once for as long as the file does not change.
        """
        if not self.is_sound(key):
            return None
        with safe_open(self.root / key.path / TENSORS, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 (no dict)
            return {name: file.get_tensor(name) for name in names}

    def get(self, key: Key) -> Artifact | None:
        """The artifact, or None when it is absent or damaged."""
        tensors = self.tensors(key)
        return None if tensors is None else Artifact(self.record(key), tensors)

    def is_sound(self, key: Key) -> bool:
        """Whether the artifact is there and intact; a damaged one is set aside."""
        folder = self.root / key.path
        if not folder.is_dir():
            return False
        try:
            self._verify(folder)
        except _Damaged as damaged:
            return self._mended_meanwhile(key, str(damaged))
        return True

    def _verify(self, folder: Path) -> None:
        record, file = _read_record(folder), folder / TENSORS
        try:
            status = file.stat()
            stamp = (status.st_mtime_ns, status.st_size)
            if self._verified.get(str(file)) != stamp:
                with file.open("rb") as content:
                    found = hashlib.file_digest(content, "sha256").hexdigest()
                if found != record["sha256"]:
                    raise _Damaged("the checksum of its tensors does not match")
                self._verified[str(file)] = stamp
        except FileNotFoundError:
            raise _Damaged("its tensors are missing") from None

    def why_damaged(self, path: str) -> str | None:
        """What is wrong with the artifact in the folder `path`, touching nothing; None if sound."""
        try:
            Store(self.root)._verify(self.root / path)
        except _Damaged as damaged:
            return str(damaged)
        return None

    def _mended_meanwhile(self, key: Key, why: str) -> bool:
        """Set a damaged artifact aside, unless another process has mended it."""
        folder = self.root / key.path
        try:
            with self.lock(f"{key.digest}-aside"):
                if not folder.is_dir():
                    return False
                try:
                    self._verify(folder)
                except _Damaged as damaged:
                    self._set_aside(key, str(damaged))
                    return False
                return True
        except OSError as error:
            warnings.warn(
                f"{key.path} is damaged ({why}) and cannot be set aside ({error.strerror}): it is "
                "left out",
                stacklevel=4,
            )
            return False

    def put(self, key: Key, record: Mapping, tensors: Mapping[str, Tensor]) -> None:
        """Write an artifact, whole or not at all; one that is there already stays."""
        raw = save_tensors({n: t.detach().cpu().contiguous() for n, t in tensors.items()})
        record = {**record, "sha256": hashlib.sha256(raw).hexdigest()}
        record["record_sha256"] = _record_digest(record)
        text = json.dumps(record, indent=1, sort_keys=True, allow_nan=False)
        target = self.root / key.path
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=self.root))
        try:
            write_synced(temporary / TENSORS, raw)
            write_synced(temporary / RECORD, text.encode())
            if not self.is_sound(key):  # what is damaged is set aside, so that the place is free
                _rename_unless_there(temporary, target)
            sync_folder(target.parent)
            self._failure(key).unlink(missing_ok=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def adopt(self, path: str, folder: Path) -> None:
        """Move a whole artifact's folder, which lies in the store, to its place `path`.

        One that is there already stays, unless it is damaged.
        """
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        stage, _, name = path.partition("/")
        label, _, digest = name.rpartition("-")
        if not self.is_sound(Key(stage, label, digest)):
            _rename_unless_there(folder, target)

    def lock(self, name: str) -> FileLock:
        """A lock between processes that use this store; freed by the system when one dies."""
        folder = self.root / ".locks"
        folder.mkdir(exist_ok=True)
        return FileLock(folder / f"{name}.lock")

    def is_locked(self, name: str) -> bool:
        """Whether somebody on this machine holds that lock. Waits for nobody."""
        try:
            handle = os.open(self.root / ".locks" / f"{name}.lock", os.O_RDONLY)
        except OSError:
            return False
        try:
            fcntl and fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(handle)
        return False

    def at_work(self) -> list[str]:
        """The names of all locks that are held on this machine."""
        names = (path.stem for path in (self.root / ".locks").glob("*.lock"))
        return sorted(name for name in names if self.is_locked(name))

    def put_failure(self, key: Key, why: str, traceback: str = "") -> None:
        """Note why `key` could not be computed, until it is. A full disk loses the note only."""
        note = {
            "artifact": key.path,
            "why": why,
            "traceback": traceback,
            "host": socket.gethostname(),
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with suppress(OSError):
            self._failure(key).parent.mkdir(exist_ok=True)
            replace_synced(self._failure(key), json.dumps(note, indent=1).encode())

    def failure(self, key: Key) -> dict | None:
        """The note of `put_failure`, if there is one."""
        try:
            return json.loads(self._failure(key).read_bytes())
        except (OSError, ValueError):
            return None

    def _failure(self, key: Key) -> Path:
        return self.root / ".failed" / f"{key.stage}-{key.digest}.json"

    @contextmanager
    def troubles_in_a_sentence(self) -> Iterator[None]:
        """A disk that is full or cannot be written becomes a `StoreError`."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
                raise
            raise StoreError(
                f"store = {self.root}: cannot be written ({error.strerror}); all that was finished "
                "is kept: make room, or permit writing, and run again"
            ) from error

    def checkpoint(self, key: Key) -> Path:
        """Where the run that will become `key` keeps its progress until it is done."""
        folder = self.root / ".checkpoints"
        folder.mkdir(exist_ok=True)
        return folder / f"{key.stage}-{key.digest}.safetensors"

    def _set_aside(self, key: Key, why: str) -> None:
        aside = Path(tempfile.mkdtemp(prefix=f"{key.label}-{key.digest}-", dir=self._damaged()))
        (self.root / key.path).rename(aside / "artifact")
        warnings.warn(
            f"{key.path} is damaged ({why}): set aside in {aside.relative_to(self.root)}, "
            "it will be computed again",
            stacklevel=4,
        )

    def _damaged(self) -> Path:
        folder = self.root / ".damaged"
        folder.mkdir(exist_ok=True)
        return folder


class _Damaged(Exception):
    """What is wrong with a stored artifact."""


def _read_record(folder: Path) -> dict:
    try:
        record = json.loads((folder / RECORD).read_bytes())
        intact = record.pop("record_sha256") == _record_digest(record)
    except (FileNotFoundError, NotADirectoryError):
        raise _Damaged("its record is missing") from None
    except (ValueError, LookupError, AttributeError):
        raise _Damaged("its record cannot be read") from None
    if not intact:
        raise _Damaged("the checksum of its record does not match")
    return record


def _record_digest(record: Mapping) -> str:
    text = json.dumps(record, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _rename_unless_there(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise

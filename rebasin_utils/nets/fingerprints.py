"""Fingerprints of content: an edited file, image folder or net is another one, wherever it lies.

A fingerprint is a hash of names relative to what was named and of bytes, so a copy elsewhere has
the same one, and neither times nor the path enter it.

Reading every byte of 60,000 small files takes about three seconds, looking at their sizes and times
half of one. Reading is spared while all files have the sizes, times of change and inodes that they
had at the last reading, which is kept in a folder of the caller's. As a file may be written twice
within one tick of the clock, a reading is kept only of files that have lain still for
`STILL_SECONDS`.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from rebasin_utils.files import replace_synced

STILL_SECONDS = 2.0


def of_bytes(*parts: bytes) -> str:
    """16 hexadecimal digits of the SHA-256 of the parts, told apart by their lengths."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()[:16]


def of_files(root: Path, files: Mapping[str, str], remembered: Path) -> str:
    """The fingerprint of files and of the names that they go by.

    Args:
        root: where they lie, the place that the last reading is remembered by.
        remembered: the folder in which the last reading is kept, made when it is not there. Where
            it cannot be written, every call reads everything.
    """
    names = sorted(files)
    stats = [os.stat(files[name]) for name in names]
    lies = [(s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for s in stats]
    seen = of_bytes(json.dumps([names, lies]).encode())
    note = remembered / f"{of_bytes(str(root.resolve()).encode())}.json"
    with suppress(OSError, ValueError, LookupError, TypeError):
        last = json.loads(note.read_text())
        if last["seen"] == seen:
            return last["fingerprint"]
    begin = time.time()
    digests = [_digest(files[name]) for name in names]
    fingerprint = of_bytes(*(name.encode() for name in names), *digests)
    changed = max((max(s.st_mtime, s.st_ctime) for s in stats), default=0.0)
    if begin - changed >= STILL_SECONDS:
        with suppress(OSError):
            remembered.mkdir(parents=True, exist_ok=True)
            content = json.dumps({"seen": seen, "fingerprint": fingerprint})
            replace_synced(note, content.encode())
    return fingerprint


def _digest(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()

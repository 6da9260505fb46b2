"""Seeds by name: a function of what they are for, never of a key."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: str | float) -> int:
    """A seed that is a function of its name alone, so that no two uses share one by accident."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1

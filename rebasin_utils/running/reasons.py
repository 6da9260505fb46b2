"""Why an artifact would be computed: what of it is in the store, and what is otherwise here.

A key is a hash and says nothing. But the store has the settings that every artifact was made with,
so the artifact that goes by the same name can be held against what is asked for now. A setting is
given as a reason only where it alone changes the key.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache

from rebasin_utils.errors import InputError
from rebasin_utils.study.plan import Plan
from rebasin_utils.study.settings import Settings, dotted
from rebasin_utils.study.stage import Node
from rebasin_utils.study.store import RECORD, Key, Store

#: A stage and a label.
Place = tuple[str, str]

#: What says which artifacts there are, and nothing of any one of them.
_NO_REASON = ("name", "seeds", "first_seed", "plugins")


def of_study(settings: Settings, store: Store) -> list[tuple[str, int, str]]:
    """(stage, artifacts, why) of all that the store lacks of a study, the same reasons together."""
    plan = Plan(settings)
    telling = cache(lambda there: _telling(plan, json.loads(there)))
    found: Counter[tuple[str, str]] = Counter()
    for node in plan.all_nodes():
        if node.key not in store:
            found[node.stage, _of_node(node, store, telling)] += 1
    return [(stage, count, why) for (stage, why), count in found.items()]


def _of_node(
    node: Node, store: Store, telling: Callable[[str], dict[str, dict[Place, Key]]]
) -> str:
    if (store.root / node.key.path).is_dir():
        return "damaged"
    if note := store.failure(node.key):
        return f"failed: {note['why']}"
    there = [json.dumps(values, sort_keys=True) for values in _namesakes(node, store)]
    if not there:
        return "never asked for in this store"
    reasons = [
        [said for said, keys in telling(values).items() if _moves(node, keys)] for values in there
    ]
    fewest = min((each for each in reasons if each), key=len, default=None)
    if fewest is None:
        return (
            "one of this name is there, with these settings: made from other files, or by another "
            "version of this package"
        )
    return f"one of this name is there, made with {', '.join(fewest)}"


def _namesakes(node: Node, store: Store) -> Iterator[dict]:
    """The settings of what has the node's label and another key."""
    for path in (store.root / node.stage).glob(f"{node.key.label}-*/{RECORD}"):
        if path.parent.name.rpartition("-")[0] == node.key.label:
            with suppress(OSError, ValueError, LookupError, TypeError):
                yield dict(json.loads(path.read_bytes())["settings"])


def _telling(plan: Plan, values: dict) -> dict[str, dict[Place, Key]]:
    """Each setting that is otherwise there, in words -> the keys that the plan would have by it."""
    try:
        there = dotted(Settings.of(values))
    except InputError:
        return {}
    found = {}
    for name, here in dotted(plan.settings).items():
        if name.partition(".")[0] in _NO_REASON or there.get(name, here) == here:
            continue
        with suppress(InputError):  # it goes together with others only
            moved = Plan(plan.settings.with_values(**{name: there[name]}))
            said = f"{name} = {json.dumps(there[name])} (here {json.dumps(here)})"
            found[said] = {_place(node): node.key for node in moved.all_nodes()}
    return found


def _moves(node: Node, keys: Mapping[Place, Key]) -> bool:
    """Whether the plan that has these keys has the node, and under another key."""
    return keys.get(_place(node), node.key) != node.key


def _place(node: Node) -> Place:
    return node.stage, node.key.label

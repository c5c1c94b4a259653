"""JSON schemas that would be too costly to follow, recognised before anything is made of them.

`llguidance` intersects the patterns that a text must match all at once; time and memory double with each. It cannot be
interrupted, and the process dies where memory ends. The same is true of what divides a number, state by state.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from functools import lru_cache
from math import lcm
from typing import Any, TypeAlias
from urllib.parse import unquote

MOST_MEETING = 8
"""Patterns and formats that one text may have to match."""
MOST_DIVISOR = 10_000
"""Least common multiple of all `multipleOf`, without decimal point and zeros at the end: so many states a number has."""
MOST_NAME_PATTERNS = 32
"""Keys of `patternProperties`; each is compared with each."""
_MOST_ROUNDS = 32
_OVER = MOST_MEETING + 1

_Node: TypeAlias = dict[str, Any]


@lru_cache(maxsize=16)
def why_too_costly(schema: str) -> str | None:
    """What makes a schema too costly to follow, as the end of a sentence; None: nothing does.

    Args:
        schema: JSON text of an object.
    """
    root: _Node = json.loads(schema)
    objects = list(_objects(root))
    divisor = lcm(*(_digits(node.get("multipleOf")) for node in objects))
    if divisor > MOST_DIVISOR:
        return (
            f"its multipleOf have a least common multiple of more than {MOST_DIVISOR} (decimal point and zeros at the end "
            "left out); use fewer or rounder ones"
        )
    names = sum(len(keys) for node in objects if isinstance(keys := node.get("patternProperties"), dict))
    if names > MOST_NAME_PATTERNS:
        return f"it has {names} patternProperties, at most {MOST_NAME_PATTERNS} can be told apart; use fewer"
    kinds = ((key, node.get(key)) for node in objects for key in ("pattern", "format"))
    patterns = {(key, value) for key, value in kinds if isinstance(value, str)}
    if len(patterns) > MOST_MEETING and _meeting(root, objects) > MOST_MEETING:
        return (
            f"more than {MOST_MEETING} patterns and formats can meet in one text (through allOf, anyOf, oneOf or $ref); "
            "write them as one pattern"
        )
    return None


def _objects(root: _Node) -> Iterator[_Node]:
    """All JSON objects in it, schemas or not, found without recursion."""
    waiting: list[Any] = [root]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _digits(value: Any) -> int:
    """0.250 and 2500 are 25; what is no number is 1."""
    if not isinstance(value, int | float):
        return 1
    digits = "".join(map(str, Decimal(str(+value)).as_tuple().digits))
    return int(digits.rstrip("0") or "1")


def _meeting(root: _Node, objects: list[_Node]) -> int:
    """The most patterns that can meet in one text; rather too many, and never more than `_OVER`.

    Of a schema it is the most that meet anywhere in it, so that for all that holds of one value the numbers are added. A
    schema that leads to itself is counted in rounds, until nothing changes.
    """
    if any(isinstance(node.get(key), str) for node in objects if node is not root for key in ("$id", "id")):
        return _OVER  # addresses in it may mean something else
    nodes = _schemas(root)
    counts = dict.fromkeys(map(id, nodes), 0)
    for _ in range(_MOST_ROUNDS):
        changed = False
        for node in reversed(nodes):
            count = min(_OVER, _count(node, root, counts))
            changed |= count != counts[id(node)]
            counts[id(node)] = count
        if not changed or counts[id(root)] == _OVER:
            return counts[id(root)]
    return _OVER


def _schemas(root: _Node) -> list[_Node]:
    """The schema and all that it leads to, each once."""
    found, seen, at = [root], {id(root)}, 0
    while at < len(found):
        for child in (*_all(found[at]), *_inside(found[at]), *_alternatives(found[at]), _target(found[at], root)):
            if isinstance(child, dict) and id(child) not in seen:
                seen.add(id(child))
                found.append(child)
        at += 1
    return found


def _count(node: _Node, root: _Node, counts: Mapping[int, int]) -> int:
    def of(schema: Any) -> int:
        return counts.get(id(schema), 0) if isinstance(schema, dict) else 0

    count = ("pattern" in node) + ("format" in node) + sum(map(of, _all(node)))
    for options in (node.get("anyOf"), node.get("oneOf"), [*_below(node)], [*_values(node.get("patternProperties"))]):
        count += max(map(of, options), default=0) if isinstance(options, list) else 0
    if "$ref" in node:
        target = _target(node, root)
        count += _OVER if target is None else of(target)
    return count


def _all(node: _Node) -> list[Any]:
    return _values(node.get("allOf"))


def _alternatives(node: _Node) -> list[Any]:
    return _values(node.get("anyOf")) + _values(node.get("oneOf"))


def _inside(node: _Node) -> list[Any]:
    return [*_below(node), *_values(node.get("patternProperties"))]


def _below(node: _Node) -> Iterator[Any]:
    """Schemas of what is inside an object or a list, but for those of names that match a pattern."""
    yield from _values(node.get("properties"))
    yield from _values(node.get("prefixItems"))
    items = node.get("items")
    yield from items if isinstance(items, list) else [items]
    yield node.get("additionalItems")
    yield node.get("additionalProperties")


def _values(group: Any) -> list[Any]:
    return list(group.values()) if isinstance(group, dict) else group if isinstance(group, list) else []


def _target(node: _Node, root: _Node) -> Any:
    """What a `$ref` names by its path; None where it has another address."""
    reference = node.get("$ref")
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        return None
    place: Any = root
    for step in reference.split("/")[1:]:
        key = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(place, dict) and key in place:
            place = place[key]
        elif isinstance(place, list) and key.isdecimal() and int(key) < len(place):
            place = place[int(key)]
        else:
            return None
    return place

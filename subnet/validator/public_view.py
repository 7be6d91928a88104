"""An orchestrator's status page beside the one that follows from its journal.

Law: pure. Only pages of the same record are compared, value by value; the first difference is told in words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from subnet.coordination.status import status
from subnet.validator.follower import Follower


def compare(view: Mapping[str, Any], follower: Follower) -> tuple[bool | None, str]:
    """Whether the page is right, and why; None where it cannot be said. All that is open must have been followed."""
    try:
        index, head, owner = view["journal"]["index"], view["journal"]["head"], view["orchestrator"]
    except (KeyError, TypeError):
        return False, "it names no orchestrator, or not where its journal is"
    if owner != follower.owner:
        return False, f"{owner} answers, {follower.owner} opened the run"
    if index != follower.index:
        return None, f"it is of record {index}, the journal was read up to {follower.index}: the run goes on"
    if head != follower.head:
        return False, f"it names the head {head} for record {index}"
    expected = msgspec.json.decode(msgspec.json.encode(status(follower.run)))
    difference = first_difference({key: view.get(key) for key in expected}, expected)
    return difference is None, difference or f"every value at record {index} is recomputed"


def first_difference(found: Any, expected: Any, where: str = "") -> str | None:
    """Where two JSON values differ first, in words; None when they are equal."""
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        for key in [*expected, *(key for key in found if key not in expected)]:
            inside = f"{where}.{key}" if where else str(key)
            if key not in found or key not in expected:
                return f"{inside} is {'missing' if key not in found else 'not in the recomputed one'}"
            if (difference := first_difference(found[key], expected[key], inside)) is not None:
                return difference
        return None
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            if (difference := first_difference(one, other, f"{where}[{index}]")) is not None:
                return difference
        return None
    return None if found == expected else f"{where} is {_brief(found)}, recomputed: {_brief(expected)}"


def _brief(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 80 else f"{text[:77]}..."

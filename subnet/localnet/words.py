"""Words that the lines, the view and `explain` share: names, reasons, amounts.

Law: pure. What a stranger sent never steers the operator's terminal, and every reason comes with the remedy of the one
catalogue.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from subnet.chain.base import Subnet
from subnet.protocol.reasons import REMEDY, Reason

LETTERS_MAX = 200
"""Of a sentence on the way; the report and `explain` have the whole of it."""


def printable(text: str) -> str:
    """Without what steers a terminal: sentences may hold what a stranger sent."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def cut(text: str, letters_max: int = LETTERS_MAX) -> str:
    """Printable, and not endless."""
    text = printable(text)
    return text if len(text) <= letters_max else f"{text[: letters_max - 1]}…"


def remedy_of(reason: str) -> str:
    """The catalogue's; empty for a code that it does not know."""
    return REMEDY[Reason(reason)] if reason in tuple(Reason) else ""


def why(reason: str, sentence: str, remedy: str = "") -> str:
    """A state in a line: code, sentence, remedy."""
    said, remedy = ": ".join(part for part in (printable(reason), cut(sentence)) if part), remedy or remedy_of(reason)
    return f"{said}; {cut(remedy)}" if remedy else said


def name_of(names: Mapping[str, str], hotkey: str) -> str:
    return names.get(hotkey) or printable(hotkey[:8])


def emissions(subnet: Subnet, names: Mapping[str, str]) -> dict[str, float]:
    """Alpha of the last chain epoch by name, for whoever got some, in the order of uids."""
    hotkeys = {neuron.uid: neuron.hotkey for neuron in subnet.neurons}
    return {
        name_of(names, hotkeys.get(uid, f"uid {uid}")): pay.emission_alpha
        for uid, pay in sorted(subnet.pay.items())
        if pay.emission_alpha > 0
    }


def alphas(paid: Iterable[tuple[str, float]]) -> str:
    """'miner-0 4.310 α, miner-1 2.900 α'."""
    return ", ".join(f"{name} {alpha:.3f} α" for name, alpha in paid)

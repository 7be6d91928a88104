"""Pay in a table and in words, for the terminal: what `account` gathered, part by part.

    epochs: work units x completion x window x valid = counted  ->  sum x gate = score  ->  share  ->  weight

Law: shows, computes nothing that a payslip does not say; every reason comes with its sentence and the catalogue's
remedy. What a stranger sent cannot steer the terminal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from subnet.coordination.settlement import Sheet
from subnet.protocol.reasons import REMEDY, Reason
from subnet.scoring.ledger import Credit
from subnet.validator.account import Account, Part, Told
from subnet.validator.history import History

DONE = ("nothing to do", "none needed")
"""How remedies begin that ask for nothing."""
WHY_LETTERS_MAX = 100


class Source(NamedTuple):
    """Up to where the journal was read."""

    record: int
    """The last open one."""
    newest: int
    """The newest record, sealed or not."""
    block: int
    """The chain's, as the journal saw it last."""

    @property
    def sealed(self) -> int:
        return self.newest - self.record

    def __str__(self) -> str:
        said = f"as of journal record {self.record}, chain block {self.block}"
        return said + (f"; {self.sealed} newer records are sealed until their epoch closes" if self.sealed else "")


# ---- one hotkey ------------------------------------------------------------------------------------------------------


def explanation(
    one: Account, sheet: Sheet, history: History, names: Mapping[str, str], source: Source
) -> Iterator[RenderableType]:
    slip = one.slip
    yield _text(f"{name}  {slip.hotkey}" if (name := names.get(slip.hotkey)) else slip.hotkey, "bold")
    place = f"uid {slip.uid}" if slip.uid is not None else "no uid"
    yield _text(f"{place}{'' if one.stage is None else f', stage {one.stage}'}, {source}", "dim")
    yield _state(slip.reason, slip.sentence, slip.remedy)
    yield _heading("Pay")
    if one.parts:
        yield _table(one.parts)
    yield from map(_text, _in_words(one, sheet))
    yield _heading("On the chain")
    yield from map(_text, _on_chain(one, names))
    yield from map(_text, history.uid_words(slip.hotkey, sheet.basis.uids, names))
    if history.tuned or history.on_chain:
        yield _heading("What the owner changed")
        yield from map(_text, _changes(history))
    yield _heading("Audits")
    yield from map(_text, _audits(one))
    yield _heading("Now")
    yield _state(one.now.reason, one.now.sentence, one.now.remedy)
    yield _heading("Results")
    yield _text(f"{one.applied} accepted" + ("" if one.fates else ", and no other came"))
    for fate in one.fates:
        yield _text(f"{fate.count} {fate.outcome}; the latest:")
        yield _state(fate.reason, fate.sentence, REMEDY[fate.reason])


def _table(parts: Sequence[Part]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("epoch", "age", "passes", "work units", "x completion", "x window", "x valid", "= counted", "reason"):
        table.add_column(name, justify="left" if name in ("passes", "reason") else "right", no_wrap=True)
    expired = [part for part in parts if part.reason is Reason.EXPIRED]
    if expired:
        units = math.fsum(part.work_units for part in expired)
        row = [_epochs(expired), "", "", f"{units:.4f}", "", "0", "", "0.0000", Reason.EXPIRED.value]
        table.add_row(*map(_text, row), style="dim")
    for part in parts:
        if part.reason is not Reason.EXPIRED:
            row = [f"{part.epoch}", f"{part.age_s:.0f} s", _passes(part.credit), f"{part.work_units:.4f}"]
            row += [f"{part.completion:.4f}", f"{part.window:g}", f"{part.valid:g}", f"{part.counted:.4f}"]
            table.add_row(*map(_text, row), _text(part.reason.value, "green" if part.counted else "yellow"))
    return table


def _in_words(one: Account, sheet: Sheet) -> Iterator[str]:
    """The same as sentences, then from the sum to the weight."""
    slip, rules = one.slip, sheet.basis.rules
    if one.stage is not None:
        prices = ", ".join(f"a {kind} {price:.6g}" for kind, price in one.prices.items())
        yield f"In stage {one.stage} an accepted pass is worth, in work units: {prices}."
    if not one.parts:
        yield "No accepted work of this hotkey is in an epoch that has closed."
    groups: dict[tuple[Reason, str], list[Part]] = {}
    for part in one.parts:
        if part.counted:
            yield (
                f"Epoch {part.epoch}: {_passes(part.credit)} passes accepted, {part.work_units:.6g} work "
                f"units; {_owed(part.credit)}; {part.sentence}: {part.counted:.6g} count."
            )
        else:
            said = f"older than the {rules.gamma_s:.0f} s that pay" if part.reason is Reason.EXPIRED else part.sentence
            groups.setdefault((part.reason, said), []).append(part)
    for (reason, said), parts in groups.items():
        units = math.fsum(part.work_units for part in parts)
        yield (
            f"Epoch {_epochs(parts)}: {units:.6g} work units, none of which counts: "
            f"{reason}: {said} -> {REMEDY[reason]}."
        )
    total = math.fsum(part.counted for part in one.parts)
    gate = slip.gate
    yield (
        f"Score: {total:.6g} counted work units x gate {gate.product:g} (forfeit {gate.forfeit:g} x agreement "
        f"{gate.agreement:g} x CLASP {gate.clasp:g}) = {slip.score:.6g}."
    )
    scores = math.fsum(value for hotkey, value in sheet.emission.scores.items() if hotkey in sheet.basis.uids)
    yield f"Share: {slip.score:.6g} of {scores:.6g}, the scores of all uids together = {slip.share:.4%}."
    owns = slip.uid is not None and slip.uid == sheet.basis.owner_uid
    yield (
        f"Weight: share x (1 - {rules.burn_fraction:g} burnt) = {slip.weight:.4%}"
        + (f" of uid {slip.uid}" if slip.uid is not None else ", for there is no uid to give it to")
        + (", the owner's, which holds all that is burnt too." if owns else ".")
    )


def _on_chain(one: Account, names: Mapping[str, str]) -> Iterator[str]:
    """The chain pays by what validators set, which may be of an older record than the weights above."""
    if one.slip.uid is None:
        yield "There is no uid that a weight could be given to."
        return
    if not one.told:
        yield "No validator has reported weights yet; the chain pays by those that validators set."
    for told in one.told:
        who = names.get(told.validator, told.validator)
        if told.block:
            yield f"{who} set {told.weight:.4%} at block {told.block}, from journal record {told.record}."
        else:
            yield f"{who} could not set weights: {_with_remedy(told)}."


def _with_remedy(told: Told) -> str:
    """A refusal begins with its reason."""
    reason = told.sentence.partition(":")[0]
    if reason not in set(Reason) or (remedy := REMEDY[Reason(reason)]).startswith(DONE):
        return told.sentence
    return f"{told.sentence} -> {remedy}"


def _changes(history: History) -> Iterator[str]:
    """The newest first."""
    for said in reversed(history.tuned):
        yield f"{said}; each stage goes by it from its next epoch on, pay when all do."
    for said in reversed(history.on_chain):
        yield f"On the chain, {said}."


def _audits(one: Account) -> Iterator[str]:
    standing = one.standing
    yield (
        f"{standing.passed} passed, {standing.failed} failed, {standing.not_revealed} not revealed, "
        f"{standing.unreadable} unreadable, {one.open_audits} open."
    )
    if standing.sentence:
        yield f"The latest: {standing.sentence}."
    if standing.failure and standing.failure != standing.sentence:
        yield f"The latest that failed: {standing.failure}."
    if standing.wrong_shard_at is not None:
        yield f"Shards were reduced wrongly, as their recomputation showed -> {REMEDY[Reason.WRONG_SHARD]}."


# ---- everybody -------------------------------------------------------------------------------------------------------


def everybody(
    accounts: Iterable[Account], sheet: Sheet, names: Mapping[str, str], source: Source, letters_max: int
) -> Iterator[RenderableType]:
    """A line for each, the best paid first; hotkeys are cut to `letters_max`."""
    rules = sheet.basis.rules
    yield _text(f"{source}; {rules.gamma_s:.0f} s pay, {rules.burn_fraction:.2%} is burnt", "dim")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    columns = ("hotkey", "uid", "stage", "counted", "gate", "score", "weight", "audits", "reason", "now", "why")
    for name in columns:
        left = name in ("hotkey", "reason", "now", "why")
        table.add_column(name, justify="left" if left else "right", no_wrap=True, overflow="ellipsis")
    for one in sorted(accounts, key=lambda one: (-one.slip.score, names.get(one.slip.hotkey, one.slip.hotkey))):
        slip, standing = one.slip, one.standing
        row = [names.get(slip.hotkey) or _cut(slip.hotkey, letters_max), "-" if slip.uid is None else f"{slip.uid}"]
        row += ["-" if one.stage is None else f"{one.stage}", f"{math.fsum(part.counted for part in one.parts):.2f}"]
        row += [f"{slip.gate.product:g}", f"{slip.score:.2f}", f"{slip.weight:.2%}"]
        row += [f"{standing.passed} of {standing.passed + standing.failed + standing.not_revealed}"]
        why = _text(_cut(slip.sentence, WHY_LETTERS_MAX))
        table.add_row(*map(_text, row), _reason(slip.reason), _reason(one.now.reason), why)
    yield table


# ---- words -----------------------------------------------------------------------------------------------------------


def _state(reason: Reason, sentence: str, remedy: str) -> Text:
    text = _reason(reason).append(_printable(f": {sentence}"))
    return text if remedy.startswith(DONE) else text.append(f" -> {remedy}", "italic")


def _reason(reason: Reason) -> Text:
    return Text().append(reason.value, "green" if reason in (Reason.PAID, Reason.OK, Reason.BUSY) else "yellow")


def _heading(text: str) -> Text:
    return Text().append(f"\n{text}", "bold cyan")


def _text(text: str, style: str = "") -> Text:
    return Text(_printable(text), style)


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _cut(text: str, letters_max: int) -> str:
    return text if len(text) <= letters_max else f"{text[: letters_max - 1]}…"


def _epochs(parts: Sequence[Part]) -> str:
    """'4', or '0 to 3': epochs follow each other."""
    first, last = parts[0].epoch, parts[-1].epoch
    return f"{first}" if first == last else f"{first} to {last}"


def _passes(credit: Credit) -> str:
    counts = (credit.forwards, "forward"), (credit.backwards, "backward"), (credit.losses, "loss")
    return ", ".join(f"{count} {name}" for count, name in counts if count)


def _owed(credit: Credit) -> str:
    return f"{max(0, credit.returned)} of {credit.due} backwards it owed are its own" if credit.due else "it owed none"

"""What a followed journal says about one hotkey: its pay with all parts, its audits, its state, its results.

Law: a pure reading of the fold and of the replies that follow from it; every figure of pay is `settlement.sheet`'s.
What only the orchestrator's door knows is here as it was recorded: in whose name a refused request came, unproven.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from msgspec import Struct

from subnet.coordination import audits
from subnet.coordination.audit_state import Standing
from subnet.coordination.machine import Decision
from subnet.coordination.members import notice
from subnet.coordination.notices import notice_for
from subnet.coordination.settlement import Sheet
from subnet.coordination.state import State
from subnet.protocol.ids import Hotkey, Pass
from subnet.protocol.messages import Envelope, ExchangeReply, Notice, Refusal, Refused, Review, WeightsSet
from subnet.protocol.reasons import Reason
from subnet.scoring.emission import Payslip, window
from subnet.scoring.ledger import Credit, work_units
from subnet.validator.history import History


class Fate(Struct):
    """What became of a hotkey's results or requests that were not simply applied, by outcome and reason."""

    outcome: str
    """ignored, rejected, refused, or refused at the door."""
    reason: Reason
    count: int = 0
    sentence: str = ""
    """Of the latest one."""


class Fates:
    """Fed by a `Follower` with every record and what followed from it."""

    def __init__(self) -> None:
        self.applied: dict[Hotkey, int] = {}
        self._fates: dict[Hotkey, dict[tuple[str, Reason], Fate]] = {}
        self._unpermitted: set[Hotkey] = set()

    def note(self, index: int, envelope: Envelope, decision: Decision | None) -> None:
        message, reply = envelope.message, decision.reply if decision is not None else None
        if isinstance(message, Refused):
            self._count(Hotkey(message.claimed), "refused at the door", message.reason, message.sentence, message.times)
        elif isinstance(reply, Refusal):
            if isinstance(message, Review | WeightsSet):
                self._unpermitted.add(envelope.sender)
            self._count(envelope.sender, "refused", reply.notice.reason, reply.notice.sentence)
        elif isinstance(reply, ExchangeReply):
            for verdict in reply.verdicts:
                if verdict.outcome == "applied" and verdict.reason is Reason.OK:
                    self.applied[envelope.sender] = self.applied.get(envelope.sender, 0) + 1
                else:
                    self._count(envelope.sender, verdict.outcome, verdict.reason, verdict.sentence)

    def refused_as_validator(self, hotkey: Hotkey) -> bool:
        """Whether it wanted to validate and might not."""
        return hotkey in self._unpermitted

    def of(self, hotkey: Hotkey) -> list[Fate]:
        """Most frequent first."""
        return sorted(self._fates.get(hotkey, {}).values(), key=lambda fate: (-fate.count, fate.reason))

    def _count(self, hotkey: Hotkey, outcome: str, reason: Reason, sentence: str, times: int = 1) -> None:
        of_hotkey = self._fates.setdefault(hotkey, {})
        fate = of_hotkey.setdefault((outcome, reason), Fate(outcome, reason))
        fate.count, fate.sentence = fate.count + times, sentence


class Part(NamedTuple):
    """One epoch's payment: work units x completion x window x valid = counted."""

    epoch: int
    age_s: float
    credit: Credit
    work_units: float
    completion: float
    window: float
    valid: float
    """0 where the epoch is void or forfeited."""
    counted: float
    reason: Reason
    sentence: str


class Told(NamedTuple):
    """What a validator last told the chain about the hotkey's uid."""

    validator: Hotkey
    weight: float
    record: int
    block: int
    """0: the chain did not take it."""
    sentence: str


class Account(NamedTuple):
    slip: Payslip
    parts: tuple[Part, ...]
    """Oldest first."""
    stage: int | None
    prices: Mapping[str, float]
    """Work units of one pass in that stage, by kind."""
    now: Notice
    """Why it is busy, idle or out of the run at this record."""
    standing: Standing
    open_audits: int
    applied: int
    """Results that were accepted."""
    fates: tuple[Fate, ...]
    told: tuple[Told, ...]


def account(state: State, sheet: Sheet, fates: Fates, history: History, hotkey: Hotkey) -> Account:
    """Of any hotkey, known to the run or not."""
    slip, miner = sheet.payslip(hotkey), state.miners.get(hotkey)
    return Account(
        slip=slip,
        parts=tuple(_parts(state, sheet, slip)),
        stage=miner.stage if miner is not None else None,
        prices=_prices(state, miner.stage) if miner is not None else {},
        now=_now(state, fates, history, hotkey),
        standing=state.pay.standing.get(hotkey, Standing()),
        open_audits=sum(audit.hotkey == hotkey for audit in state.pay.audits.values()),
        applied=fates.applied.get(hotkey, 0),
        fates=tuple(fates.of(hotkey)),
        told=tuple(_told(state, slip.uid)),
    )


def _prices(state: State, stage: int) -> dict[str, float]:
    flops = [one.flops_per_token for one in state.spec.stages]
    is_last = stage == len(flops) - 1
    kinds = (Pass.LOSS,) if is_last else (Pass.FORWARD, Pass.BACKWARD)
    return {kind.value: work_units(kind, stage, flops) for kind in kinds}


def _parts(state: State, sheet: Sheet, slip: Payslip) -> Iterator[Part]:
    gamma_s = sheet.basis.rules.gamma_s
    for line in slip.lines:
        credit = state.ledger.epochs.get(line.epoch, {}).get(slip.hotkey, Credit())
        inside = window(line.age_s, gamma_s)
        product = line.work_units * line.completion * inside
        valid = 0.0 if product and not line.counted else 1.0
        yield Part(
            epoch=line.epoch,
            age_s=line.age_s,
            credit=credit,
            work_units=line.work_units,
            completion=line.completion,
            window=inside,
            valid=valid,
            counted=line.counted,
            reason=line.reason,
            sentence=line.sentence,
        )


def _now(state: State, fates: Fates, history: History, hotkey: Hotkey) -> Notice:
    if (lost := history.lost_uid(hotkey, state.pay.chain.uids)) is not None:
        return lost
    if hotkey in state.miners:
        return notice_for(state, hotkey)
    if hotkey in audits.validators(state):
        return notice(Reason.OK, "it validates: the chain pays it dividends for its stake, not for work")
    if (lost := history.lost_permit(hotkey)) is not None:
        return lost
    if fates.refused_as_validator(hotkey):
        return notice(Reason.NO_PERMIT, "it asked for audits and has no validator permit yet")
    if hotkey in state.registered:
        return notice(Reason.NOT_JOINED, "it is registered and has not joined the run")
    return notice(Reason.NOT_REGISTERED, "the run does not know this hotkey")


def _told(state: State, uid: int | None) -> Iterator[Told]:
    for validator, report in sorted(state.pay.weights.items()):
        weights: Mapping[int, float] = dict(report.weights)
        weight = weights.get(uid, 0.0) if uid is not None else 0.0
        yield Told(validator, weight, report.index, report.block, report.sentence)


def known_hotkeys(state: State, history: History) -> list[Hotkey]:
    """Everybody the journal names: who worked, joined, is registered, or has a uid or had one."""
    worked = {hotkey for credits in state.ledger.epochs.values() for hotkey in credits}
    held = {*state.pay.chain.uids, *history.holders.everybody()}
    return sorted({*worked, *state.miners, *state.registered, *held, *state.pay.standing})

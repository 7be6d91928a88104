"""What the operator sees while a local run is on, as plain lines made from the public status and the chain's reading.

Law: everything shown here is there for everybody. `Progress.lines` is a pure function of what was seen so far; a line
appears when something changed, and a summary at most every ten seconds. `view` shows the same on a terminal.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from subnet.chain.base import Subnet
from subnet.localnet.public_status import Audits, Pay, Replica, Status, Verdicts
from subnet.localnet.words import alphas, emissions, name_of, printable, why
from subnet.protocol.reasons import Reason

SUMMARY_EVERY_S = 10.0
TOLD_AGAIN = 0.02
"""Emissions are told again when somebody's share of them changed by as much."""


class Progress:
    """Turns statuses into lines. `names` are the miners' names by hotkey."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self._phases: dict[int, tuple[int, str]] = {}
        self._live: dict[str, int] = {}
        self._merges: set[tuple[int, int]] = set()
        self._rolled: dict[float, str] = {}
        self._evaluations: set[int] = set()
        self._verdicts: dict[str, Verdicts] = {}
        self._paid: dict[str, str] = {}
        """Reason of each hotkey's pay."""
        self._weights: dict[str, int | str] = {}
        self._emissions: dict[str, float] = {}
        """Shares that were told last."""
        self._anchored = -1
        """The epoch whose anchor was told last."""
        self._summary_at_s = float("-inf")
        self._tokens = 0
        self._passes_merged = 0
        self._goodput: float | None = None

    def lines(self, status: Status, now_s: float, subnet: Subnet | None = None) -> list[str]:
        """What is new in `status` and on the chain, seen `now_s` seconds after the launch."""
        return [
            *self._membership(status),
            *self._stages(status),
            *self._roll_backs(status),
            *self._losses(status),
            *self._audits(status.audits),
            *self._pay(status.pay),
            *self._anchor(status),
            *(self._chain_epoch(subnet) if subnet is not None else ()),
            *self._summary(status, now_s),
        ]

    def _membership(self, status: Status) -> Iterator[str]:
        replicas = {replica.hotkey: replica for stage in status.stages for replica in stage.replicas}
        live = {r.hotkey: s.stage for s in status.stages for r in s.replicas if r.live}
        for hotkey, stage in live.items():
            if self._live.get(hotkey) != stage:
                yield f"{self._name(hotkey)} trains stage {stage}"
        for hotkey, stage in self._live.items():
            if hotkey not in live:
                gone = replicas.get(hotkey, Replica())
                said = why(gone.reason, gone.sentence, gone.remedy)
                yield f"{self._name(hotkey)} left stage {stage}" + (f": {said}" if said else "")
        self._live = live

    def _stages(self, status: Status) -> Iterator[str]:
        for stage in status.stages:
            for merge in stage.merges:
                if (stage.stage, merge.epoch) not in self._merges:
                    self._merges.add((stage.stage, merge.epoch))
                    yield (
                        f"stage {stage.stage} merged epoch {merge.epoch}: {merge.shards} shards, "
                        f"{merge.agreed} agreed, {merge.single} single, {merge.lost} lost, {merge.disputed} disputed"
                        + (f", {merge.handed_on} handed on" if merge.handed_on else "")
                    )
            before = self._phases.get(stage.stage)
            self._phases[stage.stage] = (stage.epoch, stage.phase)
            if before is not None and before != (stage.epoch, stage.phase) and stage.phase in ("uploading", "paused"):
                yield printable(f"stage {stage.stage} {stage.phase}, epoch {stage.epoch}: {stage.sentence}")

    def _roll_backs(self, status: Status) -> Iterator[str]:
        for one in status.rollbacks:
            if self._rolled.get(one.at) != one.outcome:
                self._rolled[one.at] = one.outcome
                yield printable(f"epoch {one.epoch} is rolled back: {one.sentence}: {one.outcome}")
                for hotkey, why in one.offenders.items():
                    yield printable(f"{self._name(hotkey)} spoilt epoch {one.epoch}: {why}")

    def _losses(self, status: Status) -> Iterator[str]:
        for evaluation in status.evaluations:
            if evaluation.epoch not in self._evaluations:
                self._evaluations.add(evaluation.epoch)
                yield f"validation loss {evaluation.loss:.3f} nats/token after {evaluation.epoch} epochs"

    def _audits(self, audits: Audits) -> Iterator[str]:
        passed = []
        for hotkey, now in audits.by_hotkey.items():
            before, name = self._verdicts.get(hotkey, Verdicts()), self._name(hotkey)
            self._verdicts[hotkey] = now
            if now.failed > before.failed:
                yield f"audit of {name} FAILED: {why(Reason.AUDIT_FAILED, now.sentence)}"
            if now.not_revealed > before.not_revealed:
                yield f"audit of {name}: {why(Reason.NOT_REVEALED, now.sentence)}"
            if now.unreadable > before.unreadable:
                yield f"audit of {name}: {why(Reason.UNREADABLE, now.sentence)}"
            if now.passed > before.passed:
                passed.append(name)
        if passed:
            cost = "" if audits.cost_share is None else f"; replays cost {audits.cost_share:.1%} of training compute"
            yield f"audits passed: {', '.join(passed)} ({audits.passed} so far{cost})"

    def _pay(self, pay: Pay) -> Iterator[str]:
        unpaid: defaultdict[str, list[str]] = defaultdict(list)
        paid = []
        for hotkey, slip in pay.scores.items():
            before, self._paid[hotkey] = self._paid.get(hotkey, Reason.NO_COUNTED_WORK), slip.reason
            if slip.reason == before:
                continue  # who has just come has nothing counted yet, and nobody need be told
            if slip.reason == Reason.PAID:
                paid.append(f"{self._name(hotkey)} {slip.weight:.1%}")
            else:
                unpaid[why(slip.reason, slip.sentence, slip.remedy)].append(self._name(hotkey))
        if paid:
            yield f"earns from now on: {', '.join(paid)} of the weight"
        for said, names in unpaid.items():
            yield f"unpaid: {', '.join(names)}: {said}"
        for hotkey, report in pay.validators.items():
            news = report.index if report.block else report.sentence  # the same weights kept fresh are none
            if self._weights.get(hotkey) != news:
                self._weights[hotkey] = news
                did = f"set weights of record {report.index}" if report.block else "could not set weights"
                yield f"validator {self._name(hotkey)} {did}: {printable(report.sentence)}"

    def _anchor(self, status: Status) -> Iterator[str]:
        anchor = status.chain.anchor
        if anchor is not None and anchor.epoch > self._anchored:
            self._anchored = anchor.epoch
            after = f"after {anchor.epoch} epochs" if anchor.epoch else "as the run begins"
            yield f"anchored in block {anchor.block}: the journal's head at record {anchor.index}, {after}"

    def _chain_epoch(self, subnet: Subnet) -> Iterator[str]:
        paid = emissions(subnet, self._names)
        total, before = sum(paid.values()), self._emissions
        shares = {name: alpha / total for name, alpha in paid.items()}
        if any(abs(shares.get(n, 0.0) - before.get(n, 0.0)) >= TOLD_AGAIN for n in {*shares, *before}):
            self._emissions = shares
            yield f"chain paid by block {subnet.block.number}: {alphas(paid.items())} in its last epoch"

    def _summary(self, status: Status, now_s: float) -> Iterator[str]:
        if status.passes_merged != self._passes_merged:  # between merges it only falls, and says little
            self._passes_merged, self._goodput = status.passes_merged, status.goodput
        since_s = now_s - self._summary_at_s
        if since_s < SUMMARY_EVERY_S or status.micro_batches == 0:
            return
        speed = "" if self._tokens == 0 else f", {(status.tokens - self._tokens) / since_s:,.0f} tokens/s"
        loss = "" if status.loss is None else f", training loss {status.loss:.3f}"
        goodput = "" if self._goodput is None else f", goodput {self._goodput:.0%} at the last merge"
        epochs = " ".join(str(stage.epoch) for stage in status.stages)
        yield (
            f"epochs {epochs}: {status.micro_batches} micro-batches, {status.tokens:,} tokens{speed}{loss}, "
            f"{status.in_flight} in flight{goodput}"
        )
        self._summary_at_s, self._tokens = now_s, status.tokens

    def _name(self, hotkey: str) -> str:
        return name_of(self._names, hotkey)

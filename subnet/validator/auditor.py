"""Replays one audited segment: fetch every byte it names, check it, compute, report figures (ALGORITHMS 5).

Law: nothing is believed but digests that stand in the journal; what does not match them is the miner's fault where the
miner wrote it, and nobody's where it is gone. No judgement here: `scoring.audit.judge` has the last word, in every
validator and in the orchestrator's machine alike.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from subnet.data.sampling import Batches
from subnet.errors import PeerFault
from subnet.merging import compression
from subnet.model.replay import Replay, ReplayPass, Segment
from subnet.model.training_state import TrainingState
from subnet.protocol.ids import Values
from subnet.protocol.messages import AuditDone, AuditFigures, AuditPass, AuditWork, Commitment, Source
from subnet.protocol.reasons import Reason
from subnet.protocol.run_spec import RunSpec
from subnet.runtime import Runtime
from subnet.scoring.audit import state_digest
from subnet.transport.transfer import Expired, Transfer

_NOBODYS_FAULT = frozenset({Reason.STALE, Reason.NOT_ALLOWED, Reason.UNSIGNED, Reason.BAD_SIZE})
"""What a store may answer where it does not let us read: nothing that its writer could help."""


class _Missing(Exception):
    """An object cannot be read any more."""


class _Bytes(NamedTuple):
    anchor: bytes
    start: tuple[bytes, ...]
    end: tuple[bytes, ...]
    upload: bytes | None
    passes: tuple[ReplayPass, ...]


class Auditor:
    """Carries out audits; `turn` is held while one computes. `batches` gives every micro-batch's tokens."""

    def __init__(
        self,
        spec: RunSpec,
        batches: Batches,
        transfer: Transfer,
        runtime: Runtime,
        device: str,
        turn: asyncio.Lock,
        replay: type[Replay] = Replay,
    ) -> None:
        self._replay = replay
        self.spec, self._batches, self._device = spec, batches, device
        self._transfer, self._runtime, self._turn = transfer, runtime, turn

    async def audit(self, work: AuditWork) -> AuditDone:
        """The finding; a replay that cannot be made is one too."""
        deadline = self._runtime.monotonic() + work.deadline_s
        began = self._runtime.monotonic()
        try:
            data = await self._fetch(work, deadline)
            async with self._turn:
                began = self._runtime.monotonic()
                figures = await self._runtime.run_blocking(lambda: self._measure(work, data))
        except (_Missing, Expired) as error:
            return _done(work, Reason.UNREADABLE, str(error), 0.0)
        except PeerFault as fault:
            return _done(work, Reason(fault.code), fault.sentence, self._runtime.monotonic() - began)
        took_s = max(0.0, self._runtime.monotonic() - began)
        return AuditDone(item=work.item, figures=figures, reason=Reason.OK, sentence="replayed", compute_s=took_s)

    # ---- bytes -------------------------------------------------------------------------------------------------------

    async def _fetch(self, work: AuditWork, deadline: float) -> _Bytes:
        passes = [await self._pass(one, deadline) for one in work.passes]
        return _Bytes(
            anchor=await self._get(work.anchor, deadline),
            start=await self._state(work.start, work.begins, deadline),
            end=await self._state(work.end, work.ends, deadline),
            upload=None if work.upload is None else await self._own(work.upload, deadline),
            passes=tuple(passes),
        )

    async def _pass(self, one: AuditPass, deadline: float) -> ReplayPass:
        work = one.work
        return ReplayPass(
            item=work.item,
            kind=work.kind,
            micro_batch=work.micro_batch,
            version=one.version,
            stage_input=None if work.stage_input is None else await self._get(work.stage_input, deadline),
            gradient=None if work.gradient is None else await self._get(work.gradient, deadline),
            output=None if one.output is None else await self._own(one.output, deadline),
            loss=one.loss,
        )

    async def _state(self, sources: Sequence[Source], commitment: Commitment, deadline: float) -> tuple[bytes, ...]:
        if not sources:
            return ()
        numbers = commitment.version, commitment.step, commitment.optimizer_steps
        if state_digest(*numbers, [source.digest for source in sources]) != commitment.digest:
            raise PeerFault(Reason.BAD_DIGEST, "the revealed state is not the one that was committed")
        return tuple([await self._own(source, deadline) for source in sources])

    async def _get(self, source: Source, deadline: float) -> bytes:
        """Bytes that others wrote: if they are not there any more, this miner cannot help it."""
        try:
            return await self._transfer.fetch(source, deadline)
        except PeerFault as fault:
            raise _Missing(f"{source.key} cannot be read: {fault.sentence}") from fault

    async def _own(self, source: Source, deadline: float) -> bytes:
        """Bytes that the audited miner wrote: if they are missing or other ones than it reported, that is its fault."""
        try:
            return await self._transfer.fetch(source, deadline)
        except PeerFault as fault:
            if fault.code in _NOBODYS_FAULT:
                raise _Missing(f"{source.key} cannot be read: {fault.sentence}") from fault
            raise

    # ---- computing ---------------------------------------------------------------------------------------------------

    def _measure(self, work: AuditWork, data: _Bytes) -> AuditFigures:
        count = self.spec.stages[work.stage].num_params

        def state(parts: tuple[bytes, ...], at: Commitment) -> TrainingState | None:
            if not parts:
                return None
            vectors = tuple(compression.decode(part, Values.FP32, count) for part in parts)
            return TrainingState(at.version, at.step, at.optimizer_steps, vectors)

        upload_P: np.ndarray | None = None
        if data.upload is not None:
            upload_P = compression.decode(data.upload, self.spec.merge.upload_values, count)
        segment = Segment(
            epoch=work.epoch,
            anchor_P=compression.decode(data.anchor, Values.FP32, count),
            start=state(data.start, work.begins),
            start_version=work.begins.version,
            applies_after=work.applies_after,
            passes=data.passes,
            end_step=work.ends.step,
            end=_shown(state(data.end, work.ends)),
            upload_P=upload_P,
        )
        rules = work.spec or self.spec
        before = rules if work.applies_after is None else work.spec_before
        return self._replay(rules, work.stage, self._device, self._batches, before).measure(segment)


def _shown(state: TrainingState | None) -> TrainingState:
    if state is None:
        raise PeerFault(Reason.MALFORMED, "the audit names no end state")
    return state


def _done(work: AuditWork, reason: Reason, sentence: str, took_s: float) -> AuditDone:
    return AuditDone(item=work.item, figures=None, reason=reason, sentence=sentence[:300], compute_s=max(0.0, took_s))

"""A stopped run as its journal tells it: the state, and the bytes that its objects took.

Law: reads only. The state is the fold of the journal by the machine that decided it. Objects have exact sizes that
follow from the RunSpec, so what travelled is counted from the accepted work and nothing has to be measured on the way.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
from msgspec import Struct

from subnet.coordination import machine
from subnet.coordination.merge_state import MergeRecord
from subnet.coordination.state import State
from subnet.errors import InvariantViolation
from subnet.localnet.lost_work import LostWork
from subnet.merging import compression
from subnet.protocol.ids import Digest, Values
from subnet.protocol.messages import Anchored, Envelope
from subnet.storage.base import GENESIS_HEAD, Journal, JournalRecord

PORTION = 500


class Fold(Struct):
    """What a journal amounts to."""

    state: State
    records: int
    head: Digest
    anchors: list[Anchored]
    """Where the chain holds a head of it, in order."""
    passes: dict[str, int]
    """Passes by what became of them, as `lost_work.LostWork.totals` has them."""


async def fold(journal: Journal) -> Fold:
    """Everything from the first record on; the run must have been opened."""
    decoder = msgspec.json.Decoder(Envelope)
    records, head, state, lost = 0, GENESIS_HEAD, None, LostWork()
    anchors: list[Anchored] = []
    async for record in _records(journal):
        envelope = decoder.decode(record.body)
        records, head = record.index + 1, record.head
        if state is None:
            state = machine.open_run(envelope)
        else:
            machine.handle(state, envelope)
        lost.note(state)
        if isinstance(envelope.message, Anchored):
            anchors.append(envelope.message)
    if state is None:
        raise InvariantViolation("the journal is empty")
    return Fold(state=state, records=records, head=head, anchors=anchors, passes=lost.totals(state))


async def _records(journal: Journal) -> AsyncIterator[JournalRecord]:
    start = 0
    while portion := await journal.read(start, PORTION):
        for record in portion:
            yield record
        start = portion[-1].index + 1


def written_bytes(state: State) -> dict[str, int]:
    """Bytes of the objects behind all accepted work, by kind; each is read by those that need it."""
    boundary_size = state.spec.boundary_size_bytes if state.spec.num_stages > 1 else 0
    credits = [credit for epoch in state.ledger.epochs.values() for credit in epoch.values()]
    forwards, losses = sum(c.forwards for c in credits), sum(c.losses for c in credits)
    # stage 0 has nobody to send a gradient to: its backwards end a micro-batch and write nothing
    backwards = sum(c.backwards for c in credits) - state.completed
    merges = [(record, state.spec.stages[stage.stage].num_params) for stage in state.stages for record in stage.merges]
    return {
        "boundary": forwards * boundary_size,
        "gradient": max(0, losses + backwards) * boundary_size,
        "upload": sum(
            record.replicas * compression.encoded_size(state.spec.merge.upload_values, count)
            for record, count in merges
        ),
        "reduced": sum(_reduced_bytes(record, count, state.spec.merge.copies) for record, count in merges),
        "anchor": sum(2 * compression.encoded_size(Values.FP32, count) for _, count in merges),
    }


def _reduced_bytes(record: MergeRecord, count: int, copies: int) -> int:
    """Shards are of nearly equal length, so their number stands for it."""
    if not record.shards:
        return 0
    written = min(copies, record.replicas) * (record.agreed + record.disputed) + record.single
    return round(compression.encoded_size(Values.FP32, count) * written / record.shards)

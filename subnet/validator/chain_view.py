"""The journal beside the chain: what the owner anchored there, and the blocks that drew the audits.

Law: the chain is the only witness that the orchestrator cannot exchange, so where both speak of the same thing the
journal must say what the chain says. A node forgets old blocks: what it no longer holds proves nothing. Raises
Unavailable when the chain does not answer at all.
"""

from __future__ import annotations

from typing import NamedTuple

from subnet.chain.base import Chain
from subnet.errors import Unavailable
from subnet.protocol.anchor import Anchor, decode
from subnet.protocol.ids import Digest, Epoch
from subnet.protocol.messages import Anchored, ChainSeen, Envelope
from subnet.validator.anchors import Anchors
from subnet.validator.checks import Check
from subnet.validator.follower import Follower

BODIES_READ_MAX = 200
"""Newest anchors whose blocks are read; each of them vouches for all records before it."""
HASHES_READ_MAX = 500
LAG_BLOCKS = 20
"""By which another node may be ahead of ours."""


class Closing(NamedTuple):
    """The block that drew an epoch's audits."""

    record: int
    epoch: Epoch
    block: int
    hash: str


class ChainRecords:
    """What the journal says of the chain. Fed with every record in order."""

    def __init__(self) -> None:
        self.anchored: list[tuple[int, Anchored]] = []
        """With the index of each record."""
        self.closings: list[Closing] = []
        self.newest_block = 0
        """The newest block that the orchestrator has named."""
        self.difference: str | None = None
        """The first anchor that is not this journal's."""

    def note(self, index: int, envelope: Envelope, follower: Follower) -> None:
        """After `follower` has folded the record."""
        message = envelope.message
        match message:
            case ChainSeen():
                if message.closes is not None:
                    self.closings.append(Closing(index, message.closes, message.block, message.block_hash))
            case Anchored():
                self._note_anchored(index, message, follower)
            case _:
                return
        self.newest_block = max(self.newest_block, message.block)

    def _note_anchored(self, index: int, said: Anchored, follower: Follower) -> None:
        self.anchored.append((index, said))
        head = follower.head_at(said.index)
        if said.index >= index:
            self._differ(f"record {index} says that record {said.index} was anchored, which did not exist yet")
        elif head not in (None, said.head):
            self._differ(
                f"record {index} says that {said.head} was anchored for record {said.index}, whose head is {head}"
            )

    def _differ(self, sentence: str) -> None:
        self.difference = self.difference or sentence


# ---- anchors ---------------------------------------------------------------------------------------------------------


async def commitment(chain: Chain) -> Anchor | None:
    """The owner's, as it stands now; None when it is no anchor."""
    return decode(await chain.commitment((await chain.subnet()).owner_hotkey))


async def check_anchors(records: ChainRecords, follower: Follower, seen: Anchors, chain: Chain | None) -> Check:
    """What was anchored, as journal, validator and chain know it. The follower must have sought what was seen."""
    name, count = "anchors", len(records.anchored)
    if (difference := records.difference or _missing_seen(seen, follower)) is not None:
        return Check(name, False, difference)
    of_run = {line.head for line in seen.seen if line.run_id == follower.run.spec.run_id}
    said = [f"{count} records name anchored heads, all recomputed"] if count else []
    if of_run:
        said.append(f"{len(of_run)} that a validator saw are of this journal")
    if seen.unreadable:
        said.append(f"{seen.unreadable} lines of its file cannot be read")
    if chain is None:
        return Check(name, True if said else None, "; ".join(said) or "nothing is anchored")
    read = await _read_bodies(records, follower, chain)
    if isinstance(read, str):
        return Check(name, False, read)
    if count:
        said.append(f"{read} of them stand in their blocks")
        if read < count:
            said[-1] += f" ({count - read} not held by this node any more, or not asked for)"
    holds, current = await _current(records, follower, chain)
    return Check(name, holds if holds is False or not said else True, "; ".join([*said, current]))


def _missing_seen(seen: Anchors, follower: Follower) -> str | None:
    """The first anchor of this run that a validator saw and that this journal does not have where it was."""
    for line in seen.seen:
        if line.run_id != follower.run.spec.run_id:
            continue
        index = follower.index_of(line.head)
        if line.index is None and index is None:
            return f"a validator saw {line.head} anchored after {line.epoch} epochs, and no record has that head"
        if line.index not in (None, index):
            where = "no record has it: the journal was cut or exchanged, or saved before"
            where = where if index is None else f"record {index} has it"
            return f"a validator saw {line.head} anchored, the head of record {line.index}, and {where}"
    return None


async def _read_bodies(records: ChainRecords, follower: Follower, chain: Chain) -> int | str:
    """How many anchors were found in their blocks, the newest first; the first that was not, in words."""
    hotkeys = [(await chain.subnet()).owner_hotkey] if records.anchored else []
    hotkeys += [follower.owner] if follower.owner is not None and follower.owner not in hotkeys else []
    newest, found = await chain.wait_for_block(0), 0
    for record, said in reversed(records.anchored[-BODIES_READ_MAX:]):
        if said.block > newest.number + LAG_BLOCKS:
            return f"record {record}: block {said.block} does not exist, the chain is at {newest.number}"
        if said.block > newest.number:
            continue
        try:
            told = [decode(await chain.committed_in(said.block, hotkey)) for hotkey in hotkeys]
        except Unavailable:
            await chain.wait_for_block(0)  # away altogether, or only without that block, and all older ones
            return found
        if all(anchor is None or (anchor.epoch, anchor.head) != (said.epoch, said.head) for anchor in told):
            there = next((_words(anchor.head, anchor.epoch) for anchor in told if anchor), "no anchor of the owner")
            claimed = _words(Digest(said.head), said.epoch)
            return f"record {record} says that {claimed} is anchored in block {said.block}, which holds {there}"
        found += 1
    return found


async def _current(records: ChainRecords, follower: Follower, chain: Chain) -> tuple[bool | None, str]:
    """The owner's commitment now: the newest of the journal, or one that its records do not tell of yet."""
    anchor, at = await commitment(chain), await chain.wait_for_block(0)
    if anchor is None:
        return None, "the owner's commitment on chain is no anchor"
    follower.seek([anchor.head])
    if follower.index_of(anchor.head) is None:
        await follower.catch_up()  # it may have been made while we read
    index = follower.index_of(anchor.head)
    named = f"the owner's commitment names {_words(anchor.head, anchor.epoch)}"
    if index is None and not records.anchored:
        return None, f"{named}, the run before's perhaps: nothing of this one is anchored yet"
    if index is None and follower.lacks(anchor.head):
        return False, f"{named}, and no record has it: this journal was cut or exchanged, or saved before"
    if index is None:
        return None, f"{named}, and records of so long ago are not kept"
    if records.anchored:
        record, newest = records.anchored[-1]
        if index < newest.index and newest.block <= at.number:
            return False, f"{named}, that of record {index}; record {record} says a newer one was anchored"
    return True, f"the owner's commitment is that of record {index}, after {anchor.epoch} epochs"


def _words(head: Digest, epoch: int) -> str:
    return f"the head {head} after {epoch} epochs"


# ---- draws -----------------------------------------------------------------------------------------------------------


async def check_draws(records: ChainRecords, chain: Chain) -> Check:
    """Audits are drawn by block hashes: whoever could choose one could choose who is audited."""
    name, count, equal = "draws", len(records.closings), 0
    newest = await chain.wait_for_block(0)
    for closing in reversed(records.closings[-HASHES_READ_MAX:]):
        about = f"record {closing.record}: block {closing.block}, which drew the audits of epoch {closing.epoch},"
        if not 0 < closing.block <= newest.number + LAG_BLOCKS:
            return Check(name, False, f"{about} does not exist, the chain is at {newest.number}")
        if closing.block > newest.number:
            continue
        try:
            block = await chain.wait_for_block(closing.block)
        except Unavailable:
            await chain.wait_for_block(0)
            break
        if block.hash != closing.hash:
            return Check(name, False, f"{about} has the hash {block.hash} on chain, not {closing.hash}")
        equal += 1
    if not count:
        return Check(name, None, "no audits were drawn")
    said = f"{equal} of {count} blocks that drew audits have the same hash on chain"
    if equal < count:
        said += "; the others are not held by this node, or were not asked for"
    return Check(name, True if equal else None, said)

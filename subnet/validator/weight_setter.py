"""Keeps the chain's weights what the public journal says they should be, and fresh.

Law: the weights are `coordination.settlement.sheet` of our own fold, nothing else. They are set when they changed and
the rate limit allows it, and before a tempo is over even when they did not: a validator that sets none counts as idle.
Tempo and rate limit are read each time, for the owner may tune them. A uid that is another hotkey's now is left out and
named: a score pays who earned it, or nobody. What the chain refuses is tried again; training never waits for it.

    set ── rate limit ──► may set what changed ── 7/8 tempo ──► sets in any case
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from subnet.chain.base import Chain, Outcome, Subnet
from subnet.coordination.settlement import Sheet, sheet
from subnet.protocol.ids import Digest, Hotkey
from subnet.protocol.messages import WeightsSet
from subnet.protocol.reasons import Reason
from subnet.scoring.emission import Basis
from subnet.validator.follower import Follower

RETRY_S = 5.0
"""After a refusal that time alone mends."""
LOOK_MAX_S = 60.0
"""The chain is looked at this often at least while something is to be set: the owner may have tuned it."""
_SENTENCE_LETTERS_MAX = 300
_BARRED = (Reason.NO_PERMIT, Reason.NOT_REGISTERED, Reason.DEREGISTERED)
"""Nothing but the next chain epoch, or the operator, changes these."""


class WeightSetter:
    """One validator's. `chain` is its own line to the subnet; `hotkey` is whose line that is."""

    def __init__(self, chain: Chain, hotkey: Hotkey | None = None) -> None:
        """Without `hotkey` it does not look for what an earlier process of this validator has set."""
        self.chain = chain
        self.sheet: Sheet | None = None
        """Of the newest record that is folded."""
        self.subnet: Subnet | None = None
        """The newest look at the chain."""
        self._hotkey, self._uid = hotkey, -1
        self._index = -1
        self._set: Mapping[int, float] | None = None
        """The recomputed weights that were told last, and which uids were left out of them."""
        self._dropped: tuple[int, ...] = ()
        self._block: int | None = None
        """Where they stand; 0: this hotkey has no weights on the chain, None: not looked at yet."""
        self._free_at = self._due_at = 0.0
        """When to look at the chain again: if the weights changed, and if they did not."""
        self._barred_until = 0
        self._is_lost = False
        """Whether the uid was ours once and is not now."""
        self._refused = ""

    def is_current(self, follower: Follower) -> bool:
        """Whether the chain holds what follows from all that is folded."""
        return self._set is not None and self._set == self._recomputed(follower)

    async def look(self, follower: Follower, now: float) -> WeightsSet | None:
        """Set the weights if it is time; what to report of it. Raises Unavailable."""
        weights, index, head = self._recomputed(follower), follower.index, follower.head
        changed = weights != self._set
        if index < 0 or now < (self._free_at if changed else self._due_at):
            return None
        assert self.sheet is not None
        basis, seen = self.sheet.basis, await self.chain.subnet()
        if self._block is None:
            self._block = await self._block_before(seen)
        self.subnet = seen
        dropped = left_out(basis, weights, seen)
        limit, tempo = limit_blocks(seen), max(1, seen.tempo)
        fresh = max(limit, 1, tempo - max(1, tempo // 8))
        due = limit if changed or dropped != self._dropped else fresh
        since = seen.block.number - self._block
        self._free_at = now + _pause_s(limit - since, seen)
        self._due_at = now + _pause_s(due - since, seen)
        if (self._block and since < due) or not self._may_try(follower, seen) or _is_unseen(basis, weights, seen):
            return None
        told = payable(weights, dropped)
        if told:
            outcome = await self.chain.set_weights(told)
        else:
            outcome = Outcome(False, Reason.NO_WEIGHTS, "every uid that was to be paid is somebody else's now")
        if not outcome.done:
            return self._was_refused(outcome, told, dropped, seen, index, head, now)
        sentence = outcome.sentence + _left_out_words(dropped) + self._missed_words(outcome.block, tempo)
        self._set, self._dropped, self._block, self._refused = weights, dropped, outcome.block, ""
        self._is_lost = False
        self._free_at = now + _pause_s(limit, seen)
        self._due_at = now + _pause_s(fresh, seen)
        return _report(index, head, told, dropped, outcome.block, sentence)

    # ---- what the chain says -----------------------------------------------------------------------------------------

    async def _block_before(self, seen: Subnet) -> int:
        """Where this hotkey's weights of an earlier process stand; 0 when it has none."""
        uid = _uid_of(self._hotkey, seen)
        row = None if uid is None else (await self.chain.weights()).get(uid)
        return 0 if row is None else row.block

    def _may_try(self, follower: Follower, seen: Subnet) -> bool:
        """Once refused for who we are, a try a chain epoch; at once when the chain shows that it is mended."""
        uid = _uid_of(self._hotkey, seen)
        if uid is not None:
            self._uid = uid
        elif self._uid < 0 and self._hotkey is not None:
            self._uid = follower.run.pay.chain.uids.get(self._hotkey, -1)
        return seen.block.number >= self._barred_until or any(
            neuron.uid == uid and (neuron.permit or neuron.hotkey == seen.owner_hotkey) for neuron in seen.neurons
        )

    def _was_refused(
        self,
        outcome: Outcome,
        told: Mapping[int, float],
        dropped: tuple[int, ...],
        seen: Subnet,
        index: int,
        head: Digest,
        now: float,
    ) -> WeightsSet | None:
        """Say it once, and when to try again."""
        reason, sentence = outcome.reason, outcome.sentence
        if reason is Reason.NOT_REGISTERED and (self._block or self._uid >= 0 or self._is_lost):
            reason, self._block, self._is_lost = Reason.DEREGISTERED, 0, True
            taken = next((n.hotkey for n in seen.neurons if n.uid == self._uid), None)
            sentence += f": uid {self._uid} is {taken}'s now" if taken not in (None, self._hotkey) else " any more"
        if reason in _BARRED:
            self._barred_until = seen.block.number + max(1, seen.tempo)
        self._free_at = self._due_at = now + max(RETRY_S, seen.block_s)
        said = f"{reason.value}: {sentence}"
        if said == self._refused:
            return None
        self._refused = said
        return _report(index, head, told, dropped, 0, said)

    def _missed_words(self, block: int, tempo: int) -> str:
        """What the chain did meanwhile, where more than one of its epochs was paid by the weights before."""
        passed = (block - self._block) // tempo if self._block else 0
        if passed < 2:
            return ""
        said = f"{passed} chain epochs were paid by the weights of block {self._block}"
        return f"; {Reason.CHAIN_EPOCH_MISSED.value}: {said}"

    def _recomputed(self, follower: Follower) -> Mapping[int, float]:
        if self._index != follower.index and follower.state is not None:
            self.sheet, self._index = sheet(follower.state), follower.index
        return self.sheet.emission.weights if self.sheet is not None else {}


# ---- whose uid it is -------------------------------------------------------------------------------------------------


def left_out(basis: Basis, weights: Mapping[int, float], seen: Subnet) -> tuple[int, ...]:
    """uids whose hotkey on the chain is another one than the weights are for. What is burnt goes to the owner's uid,
    whatever hotkey the owner gave it."""
    then, now = {uid: hotkey for hotkey, uid in basis.uids.items()}, {n.uid: n.hotkey for n in seen.neurons}
    burns = basis.owner_uid if basis.owner_uid == seen.owner_uid else None
    return tuple(uid for uid in sorted(weights) if uid != burns and uid in then and now.get(uid) != then[uid])


def payable(weights: Mapping[int, float], dropped: Collection[int]) -> dict[int, float]:
    """What the chain is told of the weights: without those left out, and without the owner's where it has no uid."""
    return {uid: weight for uid, weight in weights.items() if uid >= 0 and uid not in dropped}


def _is_unseen(basis: Basis, weights: Mapping[int, float], seen: Subnet) -> bool:
    """Whether a uid is weighed that no look at the chain in the journal has shown: nobody knows whose it is."""
    known = {*basis.uids.values(), seen.owner_uid, -1}
    return any(uid not in known for uid in weights)


def _uid_of(hotkey: Hotkey | None, seen: Subnet) -> int | None:
    return next((neuron.uid for neuron in seen.neurons if neuron.hotkey == hotkey), None)


# ---- words and times -------------------------------------------------------------------------------------------------


def limit_blocks(seen: Subnet) -> int:
    """Blocks between two settings of one validator at least."""
    return int(seen.hyperparameters.get("weights_rate_limit", seen.tempo))


def _pause_s(blocks: int, seen: Subnet) -> float:
    return min(max(blocks, 1) * seen.block_s, LOOK_MAX_S)


def _left_out_words(dropped: tuple[int, ...]) -> str:
    if not dropped:
        return ""
    named = ", ".join(map(str, dropped[:5])) + (" ..." if len(dropped) > 5 else "")
    return f"; left out, as another hotkey has it now: uid {named}"


def _report(
    index: int, head: Digest, told: Mapping[int, float], dropped: tuple[int, ...], block: int, sentence: str
) -> WeightsSet:
    return WeightsSet(
        index=index,
        head=head,
        weights=tuple(sorted(told.items())),
        block=block,
        sentence=sentence[:_SENTENCE_LETTERS_MAX],
        dropped=dropped,
    )

"""The ledger behind the chain in memory: one subnet, for tests and the simulation, with the real one's behaviour.

Law: `MemoryLedger` is synchronous and takes time and randomness as arguments; amounts are whole rao, and everything
minted is paid, burnt or still pending. It knows no socket and no clock of its own.

Kept of the chain: uids in order of registration, pruning of the lowest emission when full, permits to the largest
stakes at each chain epoch, weights that outlive neither their target's uid nor their sender's activity, rate limits,
commit-reveal as a delay, 41/41/18, the burn of the owner's incentive. Left out: coldkeys, delegation and its take,
TAO, registration burn, fees, root stake, bonds with memory (`chain.consensus`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from subnet.chain import refusals
from subnet.chain.base import Block, Outcome, Pay, Row, Subnet
from subnet.chain.consensus import U16, Account, Voter, pay_out
from subnet.chain.memory_blocks import Blocks
from subnet.chain.memory_commitments import Commitments
from subnet.protocol.ids import Hotkey
from subnet.protocol.messages import Neuron
from subnet.protocol.reasons import Reason

RAO = 10**9
"""Rao in one alpha."""
DEFAULTS: Mapping[str, int | bool] = {
    "tempo": 360,
    "immunity_period": 5_000,
    "weights_rate_limit": 100,
    "commit_reveal_weights_enabled": False,
    "commit_reveal_period": 1,
    "max_allowed_uids": 256,
    "max_validators": 64,
    "kappa": 32_767,
    "activity_cutoff_factor": 13_889,
}
"""By btcli's names, as raw on-chain values. activity_cutoff_factor: thousandths of a tempo."""


@dataclass
class _Uid:
    hotkey: Hotkey
    registered: int
    """Block of registration."""
    last_update: int
    """Block of the last weights, or of registration."""
    permit: bool = False
    weights: dict[int, int] = field(default_factory=dict)
    weights_from: int = 0
    """Block in which they were told: a uid that was registered later has no part in them."""
    incentive: float = 0.0
    dividends: float = 0.0
    emission: int = 0
    """Rao of the last chain epoch, as the chain shows it: the owner's burnt incentive too."""


class _Sealed(NamedTuple):
    """Weights under commit-reveal: they count from chain epoch number `opens` on."""

    opens: int
    told: int
    hotkey: Hotkey
    weights: dict[int, int]


class MemoryLedger:
    """One subnet's chain, shared by all its neurons.

    `now` gives seconds, and blocks follow it from construction on; without it `advance` makes them. `random_bytes` is
    read once: nobody who does not hold this object can tell a block's hash before the block.
    """

    def __init__(
        self,
        owner: Hotkey,
        *,
        random_bytes: Callable[[int], bytes],
        now: Callable[[], float] | None = None,
        block_s: float = 12.0,
        alpha_per_block: float = 1.0,
        **hyperparameters: int | bool,
    ) -> None:
        self.owner, self.block_s = owner, block_s
        self.answers = True
        """False plays a chain that is away: every call of a `MemoryChain` then raises Unavailable."""
        self.blocks = Blocks(random_bytes, now, block_s)
        self._rao_per_block = round(alpha_per_block * RAO)
        self._hyperparameters = dict(DEFAULTS)
        self._number, self._last_epoch, self._epochs = 0, 0, 0
        self._uids: list[_Uid] = []
        self._stake: dict[Hotkey, int] = {}
        self._sealed: list[_Sealed] = []
        self.commitments = Commitments()
        self._pending, self._account = 0, Account(0, 0, 0, 0, 0, 0)
        for name, value in hyperparameters.items():
            self.set_hyperparameter(name, value)
        self.register(owner)

    # ---- blocks ------------------------------------------------------------------------------------------------------

    def number(self) -> int:
        """The newest block's."""
        self._make_blocks(self.blocks.due())
        return self._number

    def block(self, number: int) -> Block:
        """Any block up to the newest."""
        if not 0 <= number <= self.number():
            raise ValueError(f"block {number} is still to come; the newest is {self._number}")
        return self.blocks.block(number)

    def advance(self, blocks: int = 1) -> int:
        """Make blocks by hand; the newest one's number. For a ledger without a clock."""
        if self.blocks.has_clock:
            raise ValueError("this ledger's blocks follow its clock")
        self._make_blocks(self._number + blocks)
        for heard in tuple(self.blocks.listeners):
            heard()
        return self._number

    def _make_blocks(self, last: int) -> None:
        while self._number < last:
            due = max(self._last_epoch + int(self._hyperparameters["tempo"]), self._number + 1)
            stop = min(last, due)
            self._pending += (stop - self._number) * self._rao_per_block
            self._number = stop
            if stop == due:
                self._close_chain_epoch()

    def _close_chain_epoch(self) -> None:
        """Apply sealed weights whose time has come, pay, and give permits out anew."""
        rules, number = self._hyperparameters, self._number
        self._epochs += 1
        for sealed in [sealed for sealed in self._sealed if sealed.opens <= self._epochs]:
            self._sealed.remove(sealed)
            if (uid := self._find(sealed.hotkey)) is not None:
                self._uids[uid].weights, self._uids[uid].weights_from = sealed.weights, sealed.told
        idle_blocks = int(rules["activity_cutoff_factor"]) * int(rules["tempo"]) // 1000
        voters = [
            Voter(
                stake=self._stake[held.hotkey],
                votes=held.last_update + idle_blocks >= number and (held.permit or held.hotkey == self.owner),
                weights={to: w for to, w in held.weights.items() if held.weights_from > self._uids[to].registered},
            )
            for held in self._uids
        ]
        owner_uid = self._owner_uid()
        paid = pay_out(self._pending, voters, owner_uid, int(rules["kappa"]) / U16)
        for uid, held in enumerate(self._uids):
            held.incentive, held.dividends = paid.incentive[uid], paid.dividends[uid]
            held.emission = paid.miners[uid] + paid.validators[uid]
            self._stake[held.hotkey] += held.emission - (paid.miners[uid] if uid == owner_uid else 0)
        self._stake[self.owner] += paid.owner
        self._book(sum(paid.miners) - paid.miners[owner_uid], sum(paid.validators), paid.owner)
        self._last_epoch = number
        self.commitments.chain_epoch()
        ranked = sorted(range(len(self._uids)), key=lambda uid: (-self._stake[self._uids[uid].hotkey], uid))
        for place, uid in enumerate(ranked):
            held = self._uids[uid]
            held.permit = place < int(rules["max_validators"]) and self._stake[held.hotkey] > 0 or uid == owner_uid

    def _book(self, miners: int, validators: int, owner: int) -> None:
        before, minted, self._pending = self._account, self._pending, 0
        self._account = Account(
            before.minted + minted,
            before.miners + miners,
            before.validators + validators,
            before.owner + owner,
            before.burnt + minted - miners - validators - owner,
            0,
        )

    # ---- neurons and stake -------------------------------------------------------------------------------------------

    def register(self, hotkey: Hotkey) -> Outcome:
        """Give a hotkey a uid: the next one, or when full that of the lowest emission, the owner's excepted."""
        number = self.number()
        if self._find(hotkey) is None:
            uid = len(self._uids)
            if uid >= int(self._hyperparameters["max_allowed_uids"]):
                pruned = self._least_useful()
                if pruned is None:
                    return Outcome(False, Reason.NO_UID, "no uid is free and none may be taken")
                uid = pruned
                self._vacate(uid)
            self._uids[uid : uid + 1] = [_Uid(hotkey, number, number)]
            self._stake.setdefault(hotkey, 0)
        return Outcome(True, Reason.OK, f"{hotkey} has uid {self._find(hotkey)}", number)

    def swap_hotkey(self, old: Hotkey, new: Hotkey) -> None:
        """The uid, its stake and its pay go on under another hotkey; the old one has no uid any more."""
        self.number()
        uid = self._find(old)
        if uid is None or self._find(new) is not None:
            raise ValueError(f"{old} has no uid, or {new} has one")
        self._uids[uid].hotkey = new
        self._stake[new] = self._stake.pop(old) + self._stake.get(new, 0)
        if self.owner == old:
            self.owner = new

    def add_stake(self, hotkey: Hotkey, alpha: float) -> None:
        """Stake behind a hotkey; a negative amount takes it away, down to nothing."""
        self.number()
        self._stake[hotkey] = max(0, self._stake.get(hotkey, 0) + round(alpha * RAO))

    def set_hyperparameter(self, name: str, value: int | bool) -> None:
        self.number()
        if name not in DEFAULTS:
            raise ValueError(f"no hyperparameter {name!r}; known: {', '.join(DEFAULTS)}")
        self._hyperparameters[name] = value

    def _find(self, hotkey: Hotkey) -> int | None:
        return next((uid for uid, held in enumerate(self._uids) if held.hotkey == hotkey), None)

    def _owner_uid(self) -> int:
        return next(uid for uid, held in enumerate(self._uids) if held.hotkey == self.owner)

    def _least_useful(self) -> int | None:
        """Immune uids go last; then the lowest emission, then the oldest."""
        immune_until = self._number - int(self._hyperparameters["immunity_period"])
        ranked = [
            (held.registered > immune_until, held.emission, held.registered, uid)
            for uid, held in enumerate(self._uids)
            if held.hotkey != self.owner
        ]
        return min(ranked)[-1] if ranked else None

    def _vacate(self, uid: int) -> None:
        gone = self._uids[uid].hotkey
        self._sealed = [sealed for sealed in self._sealed if sealed.hotkey != gone]

    # ---- what neurons do and see -------------------------------------------------------------------------------------

    def set_weights(self, hotkey: Hotkey, weights: Mapping[int, float]) -> Outcome:
        number, uid = self.number(), self._find(hotkey)
        held = self._uids[uid] if uid is not None else None
        standing = refusals.Standing(
            hotkey=hotkey,
            uid=uid,
            permit=held is not None and held.permit,
            owner=hotkey == self.owner,
            block=number,
            last_update=held.last_update if held else 0,
            rate_limit_blocks=int(self._hyperparameters["weights_rate_limit"]),
            num_uids=len(self._uids),
        )
        if (refusal := refusals.of_weights(standing, weights)) is not None or held is None:
            return refusal or refusals.not_registered(hotkey)
        rounded = refusals.quantised(weights)
        held.last_update = number
        if not self._hyperparameters["commit_reveal_weights_enabled"]:
            held.weights, held.weights_from = rounded, number
            return Outcome(True, Reason.OK, f"weights for {len(rounded)} uids stand at block {number}", number)
        opens = self._epochs + int(self._hyperparameters["commit_reveal_period"])
        self._sealed.append(_Sealed(opens, number, hotkey, rounded))
        return Outcome(True, Reason.OK, f"weights for {len(rounded)} uids are sealed at block {number}", number)

    def weights(self) -> dict[int, Row]:
        """By validator uid; validators without weights are left out."""
        self.number()
        rows = {}
        for uid, held in enumerate(self._uids):
            if total := sum(held.weights.values()):
                rows[uid] = Row({to: weight / total for to, weight in held.weights.items()}, held.last_update)
        return rows

    def commit(self, hotkey: Hotkey, data: str) -> Outcome:
        number = self.number()
        if self._find(hotkey) is None:
            return refusals.not_registered(hotkey)
        return self.commitments.commit(hotkey, data, number)

    def subnet(self) -> Subnet:
        block = self.block(self.number())
        return Subnet(
            block=block,
            tempo=int(self._hyperparameters["tempo"]),
            block_s=self.block_s,
            owner_uid=self._owner_uid(),
            owner_hotkey=self.owner,
            neurons=tuple(
                Neuron(uid=uid, hotkey=held.hotkey, stake=self._stake[held.hotkey] / RAO, permit=held.permit)
                for uid, held in enumerate(self._uids)
            ),
            pay={u: Pay(held.incentive, held.dividends, held.emission / RAO) for u, held in enumerate(self._uids)},
            hyperparameters=dict(self._hyperparameters),
        )

    def account(self) -> Account:
        self.number()
        return self._account._replace(minted=self._account.minted + self._pending, pending=self._pending)

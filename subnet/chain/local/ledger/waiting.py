"""Extrinsics that wait for a block.

Law: at most one for each signer and nonce. They become ready in the order in which their signers came, each signer's
in the order of its nonces and without gaps. One whose nonce has been used, or whose time is over, is dropped.
"""

from __future__ import annotations

from subnet.chain.local.ledger import accounts
from subnet.chain.local.ledger.extrinsics import FUTURE, PAYMENT, STALE, Extrinsic, Refused
from subnet.chain.local.ledger.storage import Storage

WAITING_MAX, NONCE_AHEAD_MAX = 4096, 256
TOO_LOW_PRIORITY_CODE, DROPPED_CODE = 1014, 1016


class Waiting:
    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._by_signer: dict[str, dict[int, Extrinsic]] = {}
        """Signer → nonce → extrinsic."""

    def add(self, extrinsic: Extrinsic) -> None:
        """Raises Refused."""
        who, call = extrinsic.who, extrinsic.call
        nonce, waiting = accounts.nonce(self._storage, who), self._by_signer.get(who, {})
        if extrinsic.nonce < nonce:
            raise Refused(STALE)
        if extrinsic.nonce > nonce + NONCE_AHEAD_MAX:
            raise Refused(FUTURE)
        if extrinsic.nonce in waiting:
            sentence = f"an extrinsic with nonce {extrinsic.nonce} waits already"
            raise Refused(sentence, TOO_LOW_PRIORITY_CODE, "Priority is too low")
        if sum(map(len, self._by_signer.values())) >= WAITING_MAX:
            raise Refused("the pool is full", DROPPED_CODE, "Immediately Dropped")
        payer = accounts.payer_of(self._storage, who, call.pallet, call.name)
        if accounts.free(self._storage, payer) < accounts.FEE_RAO:
            raise Refused(PAYMENT)
        self._by_signer.setdefault(who, {})[extrinsic.nonce] = extrinsic

    def next_nonce(self, who: str) -> int:
        """The account's, past what waits here without a gap."""
        nonce = accounts.nonce(self._storage, who)
        while nonce in self._by_signer.get(who, {}):
            nonce += 1
        return nonce

    def drop_stale(self, block: int) -> list[Extrinsic]:
        """Forgets, and returns, those that no block from `block` on may hold."""
        stale = []
        for who, waiting in self._by_signer.items():
            nonce = accounts.nonce(self._storage, who)
            stale += [one for one in waiting.values() if one.nonce < nonce or one.last_block < block]
        for one in stale:
            self.forget(one)
        return stale

    def ready(self) -> list[Extrinsic]:
        """Those that the next block may hold, in their order."""
        found = []
        for who, waiting in self._by_signer.items():
            nonce = accounts.nonce(self._storage, who)
            while nonce in waiting:
                found.append(waiting[nonce])
                nonce += 1
        return found

    def forget(self, extrinsic: Extrinsic) -> None:
        """Does nothing when another one waits in its place."""
        waiting = self._by_signer.get(extrinsic.who, {})
        if waiting.get(extrinsic.nonce) is extrinsic:
            del waiting[extrinsic.nonce]
        if not waiting:
            self._by_signer.pop(extrinsic.who, None)

"""The chain itself: a pool of extrinsics goes in, blocks come out.

Law: `produce` is the only thing that changes state. A block's hash is the hash of its header, which carries 32 fresh
random bytes: nobody knows a hash before its block is made, so audits may be drawn from it. What has been sealed is on
disk before anybody hears of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from operator import itemgetter
from typing import NamedTuple

import msgspec

from subnet.chain.local import genesis as births
from subnet.chain.local.genesis import Genesis
from subnet.chain.local.ledger import accounts, dispatch, emission, subnets, weights
from subnet.chain.local.ledger.book import Book, CallFailed
from subnet.chain.local.ledger.extrinsics import Extrinsic, Refused, Verifier
from subnet.chain.local.ledger.pool import ROOT
from subnet.chain.local.ledger.shield import SEED_BYTES, Shield
from subnet.chain.local.ledger.state import Change, State
from subnet.chain.local.ledger.storage import Storage
from subnet.chain.local.ledger.waiting import Waiting
from subnet.chain.local.spec.interface import Interface
from subnet.chain.local.spec.metadata import blob, compact
from subnet.chain.local.spec.pallets import BLOCK_HASH_COUNT
from subnet.chain.local.store import Block, Facts, Store
from subnet.errors import ConfigError

EXTRINSICS_MAX = 1024
"""In one block."""
BLOCKS_CACHED = 512
START_ISSUANCE_RAO = emission.HALF_SUPPLY
NO_HASH = "0x" + "00" * 32
ROOT_TEMPO = 100
UNSIGNED = bytes([4])


class Produced(NamedTuple):
    """A new block, and what became of the extrinsics that waited; by digest."""

    block: Block
    included: tuple[str, ...]
    dropped: tuple[str, ...]
    """Never to be in any block."""


class Chain:
    def __init__(
        self,
        store: Store,
        genesis: Genesis,
        *,
        now: Callable[[], float],
        random_bytes: Callable[[int], bytes],
        keep_blocks: int = 600,
    ) -> None:
        """Continues the chain in `store`, or begins it. Raises ConfigError when another version wrote it."""
        self._store, self._now, self._random_bytes = store, now, random_bytes
        facts = store.facts()
        if facts is not None:
            genesis = msgspec.json.decode(facts.genesis, type=Genesis)
        self.genesis = genesis
        self.interface = Interface(genesis.block_ms)
        digest = _hash(self.interface.metadata)
        if facts is None:
            facts = Facts(digest, random_bytes(SEED_BYTES), msgspec.json.encode(genesis))
            store.begin(facts)
        if facts.metadata_digest != digest:
            raise ConfigError("--state", "was written by another version of this chain", "start with an empty folder")
        self.state = State(keep_blocks)
        self.storage = Storage(self.state, self.interface)
        chosen = {name: int(value) for name, value in genesis.new_subnets.items()}
        self._book = Book(self.storage, chosen)
        self._shield = Shield(facts.seed)
        self._verifier = Verifier(self.interface, self.hash_at)
        self._blocks: OrderedDict[int, Block] = OrderedDict()
        self._numbers: dict[str, int] = {}
        self._waiting = Waiting(self.storage)
        self._reveals: list[tuple[int, str, list[int], list[int]]] = []
        newest = store.newest()
        if newest is None:
            self._born(chosen)
        else:
            self.state.restore(newest.number, store.versions())
            self._remember(newest)

    # ---- blocks

    @property
    def number(self) -> int:
        return self.head.number

    @property
    def head(self) -> Block:
        return next(reversed(self._blocks.values()))

    def block(self, number: int) -> Block | None:
        return self._blocks.get(number) or self._store.block(number)

    def block_by_hash(self, hash_: str) -> Block | None:
        number = self._numbers.get(hash_)
        return self._blocks[number] if number is not None else self._store.block_by_hash(hash_)

    def hash_at(self, number: int) -> str | None:
        found = self.block(number)
        return found.hash if found else None

    def produce(self) -> Produced:
        """Makes the next block of what waits. When it raises, nothing is on disk and the process must end."""
        number = self.number + 1
        self.state.begin(number)
        self._book.begin(number)
        now_ms = max(int(self._now() * 1000), int(self.storage.get("Timestamp", "Now")) + 1)
        self.storage.put("Timestamp", "Now", [], now_ms)
        emission.begin_block(self._book)
        self._open_reveals()
        inherent = self.interface.compose_call("Timestamp", "set", {"now": now_ms})
        extrinsics = [blob(UNSIGNED + inherent)]
        self._book.phase = {"ApplyExtrinsic": 0}
        self._book.emit("System", "ExtrinsicSuccess", {"dispatch_info": dispatch.info("Mandatory")})
        included = self._apply(extrinsics)
        self._book.phase = "Finalization"
        block = self._seal(number, tuple(extrinsics))
        dropped = tuple(extrinsic.digest for extrinsic in self._waiting.drop_stale(number + 1))
        return Produced(block, tuple(included), dropped)

    def _apply(self, extrinsics: list[bytes]) -> list[str]:
        """Carries out what waits, appending it to the block's extrinsics; returns the digests."""
        digests = []
        queue = self._waiting.ready()[::-1]
        while queue and len(extrinsics) < EXTRINSICS_MAX:
            extrinsic = queue.pop()
            if extrinsic.nonce != accounts.nonce(self.storage, extrinsic.who):
                continue  # a shielded one has used its number meanwhile
            self._waiting.forget(extrinsic)
            self._book.phase = {"ApplyExtrinsic": len(extrinsics)}
            digests.append(extrinsic.digest)
            extrinsics.append(extrinsic.data)
            inner = dispatch.apply(self._book, extrinsic)
            if inner is not None:
                queue += self._opened(inner)
        return digests

    def reveal_later(self, netuid: int, hotkey: str, uids: list[int], weights_: list[int]) -> None:
        """In the next block, as if the time-lock had opened."""
        self._reveals.append((netuid, hotkey, list(uids), list(weights_)))

    def _open_reveals(self) -> None:
        waiting, self._reveals = self._reveals, []
        for reveal in waiting:
            try:
                with self._book.attempt():
                    weights.reveal(self._book, *reveal)
            except CallFailed:
                continue  # as on a public chain: weights that do not hold are dropped

    def _opened(self, shielded: bytes) -> list[Extrinsic]:
        """The extrinsic inside a shielded one, to be applied right after it; none when it does not hold."""
        try:
            data = self._shield.open(shielded)
            extrinsic = self._verifier.verify(data, self.state.block - 1)
        except (ValueError, Refused):
            return []
        return [extrinsic] if extrinsic.nonce == accounts.nonce(self.storage, extrinsic.who) else []

    # ---- extrinsics

    def submit(self, data: bytes) -> str:
        """Waits for the next block; returns its digest. Raises Refused."""
        extrinsic = self._verifier.verify(data, self.number)
        self._waiting.add(extrinsic)
        return extrinsic.digest

    def next_nonce(self, who: str) -> int:
        return self._waiting.next_nonce(who)

    # ---- sealing

    def _born(self, chosen: dict[str, int]) -> None:
        """Block 0."""
        storage = self.storage
        storage.put("Timestamp", "Now", [], int(self._now() * 1000))
        storage.put("Sudo", "Key", [], births.sudo_of(self.genesis))
        for who, rao in births.balances_rao(self.genesis).items():
            accounts.set_free(storage, who, rao)
        lock_cost = round(self.genesis.lock_cost_tao * births.RAO_PER_TAO)
        for name in ("NetworkMinLockCost", "NetworkLastLockCost"):
            storage.write(name, [], lock_cost)
        storage.write("TotalIssuance", [], START_ISSUANCE_RAO)
        storage.put("Balances", "TotalIssuance", [], START_ISSUANCE_RAO)
        for name in ("NetworkRateLimit", "AdminFreezeWindow", "OwnerHyperparamRateLimit"):
            storage.write(name, [], 0)
        for name in ("CurrentKey", "NextKey"):
            storage.put("MevShield", name, [], "0x" + self._shield.public_key.hex())
        subnets.add_subnet(storage, ROOT, 0, {"tempo": ROOT_TEMPO})
        self._seal(0, ())

    def _seal(self, number: int, extrinsics: tuple[bytes, ...]) -> Block:
        parent = self.head.hash if number else NO_HASH
        self.storage.put("System", "Number", [], number)
        self.storage.put("System", "ParentHash", [], parent)
        self.storage.put("System", "Events", [], self._book.events)
        self.storage.put("System", "EventCount", [], len(self._book.events))
        if number:
            self.storage.put("System", "BlockHash", [number - 1], parent)
            if number > BLOCK_HASH_COUNT:
                self.storage.drop("System", "BlockHash", [number - 1 - BLOCK_HASH_COUNT])
        changes = self.state.changes()
        before = self.head.state_root if number else NO_HASH
        body = b"".join(extrinsics) if number else self.interface.metadata
        block = _header(number, parent, _root(before, changes), _hash(body), self._random_bytes(32), extrinsics)
        self._store.seal(block, changes, self.state.seal())
        self._remember(block)
        return block

    def _remember(self, block: Block) -> None:
        self._blocks[block.number] = block
        self._numbers[block.hash] = block.number
        while len(self._blocks) > BLOCKS_CACHED:
            _, old = self._blocks.popitem(last=False)
            del self._numbers[old.hash]


def _hash(data: bytes) -> bytes:
    return blake2b(data, digest_size=32).digest()


def _root(before: str, changes: list[Change]) -> bytes:
    """Commits to the whole state as a chain of what each block changed; no trie, so no proofs."""
    parts = [bytes.fromhex(before[2:])]
    for key, value in sorted(changes, key=itemgetter(0)):
        parts += [blob(key), b"\0" if value is None else b"\1" + blob(value)]
    return _hash(b"".join(parts))


def _header(
    number: int, parent: str, state_root: bytes, extrinsics_root: bytes, salt: bytes, extrinsics: tuple[bytes, ...]
) -> Block:
    """The block, named by the hash of its SCALE-encoded header; the salt travels as a pre-runtime digest item."""
    log = bytes([6]) + b"salt" + blob(salt)
    encoded = bytes.fromhex(parent[2:]) + compact(number) + state_root + extrinsics_root + compact(1) + log
    return Block(
        number=number,
        hash="0x" + _hash(encoded).hex(),
        parent=parent,
        state_root="0x" + state_root.hex(),
        extrinsics_root="0x" + extrinsics_root.hex(),
        logs=("0x" + log.hex(),),
        extrinsics=extrinsics,
    )

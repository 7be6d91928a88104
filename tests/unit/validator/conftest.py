"""A validator's surroundings by hand: a chain in memory on the running loop's time, and a journal that is written
record by record and published at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from loguru import logger

from subnet import presets
from subnet.chain.memory import MemoryChain, MemoryLedger
from subnet.errors import Unavailable
from subnet.protocol import messages as m
from subnet.protocol.anchor import Anchor, encode
from subnet.protocol.ids import Digest, Epoch, Hotkey
from subnet.protocol.keys import Kind, make
from subnet.protocol.public import PublicPage, opened
from subnet.runtime import LoopRuntime
from subnet.scoring.ledger import Credit
from subnet.simulation.opening import text_spec
from subnet.storage.base import GENESIS_HEAD, JournalRecord, next_head
from subnet.validator.follower import Follower
from subnet.validator.weight_setter import WeightSetter

OWNER, VALIDATOR = Hotkey("owner"), Hotkey("validator")
MINERS = tuple(Hotkey(name) for name in ("alice", "bob", "carol"))
TEMPO, LIMIT, BLOCK_S = 20, 5, 12.0
SPEC, _ = text_spec(
    presets.equivalence(presets.Size(num_miners=2, num_stages=2, epochs=2)),
    np.zeros(2_000, np.uint16),
    num_stages=2,
    micro_batch_size=2,
    seq_len=16,
)
START = m.Source(key=make(SPEC.run_id, 0, 0, "start", Kind.PARAMETERS), digest=Digest("a" * 64), size_bytes=1)
OPENING = m.RunOpened(
    spec=SPEC, starts=(m.StageStart(parameters=START, momentum=START),) * 2, evaluators=(VALIDATOR,), target_epochs=0
)


class Net:
    """Owner 0, validator 1, alice 2, bob 3, carol 4. `with_clock`: a block every 12 s, or made by hand."""

    def __init__(self, *, with_clock: bool = True, **rules: int | bool) -> None:
        self.runtime = LoopRuntime(b"net")
        clock = {"now": self.runtime.now} if with_clock else {}
        made: dict[str, Any] = {"tempo": TEMPO, "weights_rate_limit": LIMIT, "block_s": BLOCK_S} | rules | clock
        self.ledger = MemoryLedger(OWNER, random_bytes=self.runtime.random_bytes, **made)
        for hotkey in (VALIDATOR, *MINERS):
            self.ledger.register(hotkey)
        self.ledger.add_stake(VALIDATOR, 1_000.0)
        self.chain = MemoryChain(self.ledger, VALIDATOR)
        self.owner_chain = MemoryChain(self.ledger, OWNER)
        self.records: list[JournalRecord] = []
        self.shown: int | None = None
        """How many records the journal shows; None: all."""
        self.away = False
        self.follower = Follower(self)
        self.weights = WeightSetter(self.chain, VALIDATOR)

    # ---- the journal -------------------------------------------------------------------------------------------------

    async def say(self, *messages: Any, sender: Hotkey = OWNER) -> JournalRecord:
        for message in messages:
            body = msgspec.json.encode(m.Envelope(sender=sender, at=self.runtime.now(), message=message))
            head, index = self.records[-1].head if self.records else GENESIS_HEAD, len(self.records)
            self.records.append(JournalRecord(index, next_head(head, index, body), body))
        return self.records[-1]

    async def open(self) -> None:
        """A run that has looked at the chain once, and is followed."""
        await self.say(OPENING)
        await self.look()
        await self.follower.catch_up()

    async def look(self) -> JournalRecord:
        """The orchestrator looks at the chain."""
        seen = self.ledger.subnet()
        return await self.say(
            m.ChainSeen(
                block=seen.block.number,
                block_hash=seen.block.hash,
                owner_uid=seen.owner_uid,
                neurons=seen.neurons,
                tempo=seen.tempo,
                hyperparameters=dict(seen.hyperparameters),
            )
        )

    async def read(self, start: int, limit: int, timeout_s: float) -> PublicPage:
        if self.away:
            raise Unavailable("the journal is away")
        shown = self.records[: self.shown]
        records = tuple(opened(*record) for record in shown[start : start + limit])
        head, index = shown[-1].head if shown else GENESIS_HEAD, len(shown) - 1
        return PublicPage(records=records, sealed_from=len(shown), head=head, index=index)

    async def close(self) -> None: ...

    # ---- what happens ------------------------------------------------------------------------------------------------

    async def score(self, **units: float) -> None:
        """From one more record on, these are the scores."""
        await self.say(m.Tick())
        await self.follower.catch_up()
        state = self.follower.run
        state.ledger.epochs[0] = {Hotkey(name): Credit(work_units=value) for name, value in units.items()}
        state.pay.closed_at[0], state.pay.drawn = state.at, 0

    def anchor(self, record: JournalRecord, epoch: int = 0) -> Digest:
        """The owner commits a head."""
        told = encode(Anchor(("http://127.0.0.1:8091",), Epoch(epoch), Digest(record.head)))
        assert self.ledger.commit(OWNER, told).done
        return Digest(record.head)


@pytest.fixture
def make_net() -> Callable[..., Net]:
    return Net


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What is logged."""
    said: list[str] = []
    sink = logger.add(lambda message: said.append(str(message).strip()), format="{level}: {message}", level="INFO")
    yield said
    logger.remove(sink)

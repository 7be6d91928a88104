"""URLs: in replies for everything a piece of work names, and nowhere else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl

import msgspec
import pytest

from subnet.errors import PeerFault
from subnet.orchestrator.grants import JOIN_S, MARGIN_S, granted
from subnet.protocol import keys
from subnet.protocol import messages as m
from subnet.protocol.ids import Digest, Epoch, Hotkey, ItemId, MicroBatchId, Pass, RunId, Stage
from subnet.protocol.keys import Kind
from subnet.protocol.reasons import Reason
from subnet.storage.memory import MemoryObjectStore

Host = Callable[..., Awaitable[Any]]
NOW = 1_000.0
RECEIPT = m.Receipt(journal_index=7, head=Digest("0" * 64))
NOTICE = m.Notice(reason=Reason.OK, sentence="said", remedy="none")


def key(kind: Kind, name: str = "x") -> keys.ObjectKey:
    return keys.make(RunId("run"), 1, 0, name, kind)


def source(kind: Kind) -> m.Source:
    return m.Source(key=key(kind), digest=Digest("0" * 64), size_bytes=8)


def target(kind: Kind) -> m.Target:
    return m.Target(key=key(kind, "out"), size_bytes=8)


def shard(index: int, known: bool) -> m.MergedShard:
    read = m.RangeSource(key=key(Kind.REDUCED), offset=0, size_bytes=4, digest=Digest("0" * 64))
    return m.MergedShard(shard=m.Shard(index=index, start=0, length=1), source=read if known else None)


WHERE: dict[str, Any] = {"item": ItemId("i"), "stage": Stage(0), "epoch": Epoch(1), "deadline_s": 60.0}
PASS: dict[str, Any] = WHERE | {"kind": Pass.BACKWARD, "micro_batch": MicroBatchId(3)}
ENTRY = m.ManifestEntry(hotkey=Hotkey("h"), weight=1.0, scale=1.0, source=source(Kind.UPLOAD), chunk_digests=())
WORK: list[tuple[m.Work, int]] = [
    (m.PassWork(**PASS, stage_input=None, gradient=None, output=None), 0),
    (m.PassWork(**PASS, stage_input=source(Kind.BOUNDARY), gradient=None, output=target(Kind.BOUNDARY)), 2),
    (m.PassWork(**PASS, stage_input=source(Kind.BOUNDARY), gradient=source(Kind.GRADIENT), output=None), 2),
    (m.UploadWork(**WHERE, output=target(Kind.UPLOAD)), 1),
    (m.ReduceWork(**WHERE, manifest=(ENTRY, ENTRY), shards=(), output=target(Kind.REDUCED)), 3),
    (
        m.ApplyWork(
            **WHERE,
            shards=(shard(0, True), shard(1, False)),
            counted=True,
            publish_parameters=target(Kind.PARAMETERS),
            publish_momentum=target(Kind.MOMENTUM),
        ),
        3,
    ),
    (m.ApplyWork(**WHERE, shards=(shard(0, True),), counted=True, publish_parameters=None, publish_momentum=None), 1),
    (m.SyncWork(**WHERE, parameters=source(Kind.PARAMETERS), momentum=source(Kind.MOMENTUM)), 2),
]


def references(value: object) -> list[Any]:
    """Every object reference in a message."""
    if isinstance(value, m.Source | m.Target | m.RangeSource):
        return [value]
    if isinstance(value, tuple):
        return [found for part in value for found in references(part)]
    if isinstance(value, msgspec.Struct):
        return [found for name in value.__struct_fields__ for found in references(getattr(value, name))]
    return []


@pytest.mark.parametrize(("work", "count"), WORK, ids=lambda value: type(value).__name__)
async def test_every_reference_of_work_is_granted(work: m.Work, count: int) -> None:
    """1. Whatever the work names can be read or written, by one method, for a while longer than its deadline."""
    store = MemoryObjectStore(now := (lambda: NOW))
    reply = m.ExchangeReply(verdicts=(), work=(work,), drop=(), notice=NOTICE)
    sent = granted(reply, RECEIPT, store, now())
    assert sent.receipt == RECEIPT
    found = references(sent)
    assert len(found) == count
    for reference in found:
        path, _, query = reference.url.partition("?")
        terms = dict(parse_qsl(query))
        assert path == f"memory://store/objects/{reference.key}"
        assert int(terms["expires"]) == NOW + work.deadline_s + MARGIN_S
        if isinstance(reference, m.Target):
            await store.write(reference.key, terms, b"x" * 8)
            with pytest.raises(PeerFault):
                await store.read(reference.key, terms, 0, None)
        else:
            await store.put(reference.key, b"12345678")
            assert await store.read(reference.key, terms, 0, 4) == b"1234"
            with pytest.raises(PeerFault):
                await store.write(reference.key, terms, b"x" * 8)
    bare = [msgspec.structs.replace(reference, url="") for reference in found]
    assert bare == references(reply), "only the URLs were filled in"


@pytest.mark.looptime(end=3_600)
async def test_a_joiner_can_fetch_everything_it_needs(host: Host) -> None:
    """2. Tokenizer, text, parameters, momentum: granted for as long as a slow line needs. Others get no URL at all."""
    run = await host()
    reply = await run.ask("one", m.Join(session="s", device="cpu", software="test"), digest=None)
    assert isinstance(reply, m.Joined)
    given = [reply.parameters, reply.momentum, *reply.data]
    assert len(given) == 5 == len(references(reply))
    await asyncio.sleep(JOIN_S - 2.0)
    for one in given:
        assert len(await run.store.read(one.key, dict(parse_qsl(one.url.partition("?")[2])), 0, None)) == one.size_bytes
    refused = await run.ask("nobody", m.Join(session="s", device="cpu", software="test"), digest=None)
    assert references(refused) == []

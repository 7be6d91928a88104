"""Fills the URLs of a reply in, on its way out.

Law: the journal and the machine know keys only; a URL exists in replies alone, allows one method on one key, and
expires soon after the work it belongs to.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from subnet.protocol.messages import (
    ApplyWork,
    AuditWork,
    EvaluateWork,
    ExchangeReply,
    Joined,
    PassWork,
    RangeSource,
    Receipt,
    ReduceWork,
    Reply,
    RevealWork,
    Reviewed,
    Source,
    SyncWork,
    Target,
    UploadWork,
    Work,
)
from subnet.storage.base import ObjectStore

MARGIN_S = 120.0
"""How long a grant outlives its work's deadline: late results are welcome while nobody was faster."""
JOIN_S = 600.0
"""Time a joiner has for its downloads."""

W = TypeVar("W", bound=msgspec.Struct)
replace = msgspec.structs.replace


def granted(reply: Reply, receipt: Receipt, store: ObjectStore, now: float) -> Reply:
    """The reply with its URLs and its receipt."""
    if isinstance(reply, Joined):
        granter = Granter(store, now + JOIN_S)
        reply = replace(
            reply,
            parameters=granter.source(reply.parameters),
            momentum=granter.source(reply.momentum),
            data=tuple(granter.source(source) for source in reply.data),
        )
    elif isinstance(reply, ExchangeReply):
        work = tuple(Granter(store, now + one.deadline_s + MARGIN_S).work(one) for one in reply.work)
        reply = replace(reply, work=work)
    elif isinstance(reply, Reviewed):
        granter = Granter(store, now + JOIN_S)
        reply = replace(
            reply,
            audits=tuple(granter.audit(audit) for audit in reply.audits),
            evaluate=None if reply.evaluate is None else granter.evaluation(reply.evaluate),
            data=granter.sources(reply.data),
        )
    return replace(reply, receipt=receipt)


class Granter:
    """Grants of one piece of work; all expire together."""

    def __init__(self, store: ObjectStore, expires_at: float) -> None:
        self._store, self._expires_at = store, expires_at

    def source(self, source: Source) -> Source:
        return replace(source, url=self._store.grant_get(source.key, self._expires_at))

    def sources(self, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        return tuple(self.source(source) for source in sources)

    def evaluation(self, work: EvaluateWork) -> EvaluateWork:
        return replace(work, parameters=self.sources(work.parameters))

    def audit(self, work: AuditWork) -> AuditWork:
        """Every input and output of a segment, to read; nothing to write."""
        return replace(
            work,
            anchor=self.source(work.anchor),
            start=self.sources(work.start),
            end=self.sources(work.end),
            upload=self._maybe_source(work.upload),
            passes=tuple(
                replace(
                    one,
                    work=replace(
                        one.work,
                        stage_input=self._maybe_source(one.work.stage_input),
                        gradient=self._maybe_source(one.work.gradient),
                    ),
                    output=self._maybe_source(one.output),
                )
                for one in work.passes
            ),
        )

    def _maybe_source(self, source: Source | None) -> Source | None:
        return None if source is None else self.source(source)

    def _range(self, source: RangeSource | None) -> RangeSource | None:
        return None if source is None else replace(source, url=self._store.grant_get(source.key, self._expires_at))

    def _target(self, target: Target | None) -> Target | None:
        if target is None:
            return None
        return replace(target, url=self._put(target))

    def _put(self, target: Target) -> str:
        return self._store.grant_put(target.key, target.size_bytes, self._expires_at)

    def work(self, work: Work) -> Work:
        """Every reference in a piece of work, with its URL."""
        match work:
            case PassWork():
                return replace(
                    work,
                    stage_input=self._maybe_source(work.stage_input),
                    gradient=self._maybe_source(work.gradient),
                    output=self._target(work.output),
                )
            case UploadWork():
                return replace(work, output=self._target(work.output))
            case ReduceWork():
                manifest = tuple(replace(entry, source=self.source(entry.source)) for entry in work.manifest)
                return replace(work, manifest=manifest, output=self._target(work.output))
            case ApplyWork():
                return replace(
                    work,
                    shards=tuple(replace(merged, source=self._range(merged.source)) for merged in work.shards),
                    publish_parameters=self._target(work.publish_parameters),
                    publish_momentum=self._target(work.publish_momentum),
                )
            case RevealWork():
                targets = (work.start, work.end)
                start, end = (tuple(replace(t, url=self._put(t)) for t in group) for group in targets)
                return replace(work, start=start, end=end)
            case SyncWork():
                return replace(work, parameters=self.source(work.parameters), momentum=self.source(work.momentum))

"""What the run state knows for audits and pay: a part of it, under the same law as `state`."""

from __future__ import annotations

from msgspec import Struct, field

from subnet.protocol.ids import Digest, Epoch, Hotkey, ItemId, Stage
from subnet.protocol.messages import Anchored, AuditDone, Commitment, Logged, PassWork, Source
from subnet.scoring.emission import Void


class Given(Struct):
    """One pass that a miner was given."""

    work: PassWork
    answered: bool = False
    """Whether its result came, in whatever way it ended."""
    credited: bool = False
    output: Digest | None = None
    loss: float | None = None
    late: bool = False
    """Its result came when the upload was in already: it belongs into the next log."""
    forgotten: bool = False
    """The process that did it is gone, or dropped what it had trained: it need not be in a log."""
    excused: bool = False
    """A roll-back took it out of every log: it is paid as it is."""


class Dossier(Struct):
    """What one miner did in one epoch of its stage, for as long as an audit may ask."""

    stage: Stage
    rules: int
    """Which of `State.versions` the epoch went by."""
    anchor: Source
    """The stage's parameters at the epoch's start."""
    given: dict[ItemId, Given] = field(default_factory=dict)
    asked: int = 0
    """How often it was asked to upload."""
    upload: Source | None = None
    log: tuple[Logged, ...] = ()
    commitments: tuple[Commitment, ...] = ()
    applied_at: int | None = None
    loaded: bool = True
    left_unlogged: float = 0.0
    """Work units of credited passes that it left behind, in no log, in a stage that it trained before in this epoch."""


class Audit(Struct):
    """One audit that is not settled."""

    item: ItemId
    hotkey: Hotkey
    stage: Stage
    epoch: Epoch
    segment: int
    block_hash: str
    """The draws' secret."""
    late: bool
    """Whether it was drawn so late, after the chain had been away, that there may not be time enough to show it."""
    opened_at: float
    deadline: float
    """Of the current step."""
    step: str = "reveal"
    """reveal, replay."""
    start: tuple[Source, ...] = ()
    end: tuple[Source, ...] = ()
    attempt: int = 0
    """How many validators did not answer."""
    validator: Hotkey | None = None
    """Who replays it; once it failed, everybody may (`contested`)."""
    contested: bool = False
    findings: dict[Hotkey, AuditDone] = field(default_factory=dict)


class Standing(Struct):
    """What audits say about one hotkey."""

    passed: int = 0
    failed: int = 0
    not_revealed: int = 0
    unreadable: int = 0
    failed_at: float | None = None
    """When it last failed: forfeits every score until γ later."""
    wrong_shard_at: float | None = None
    """When it was last proven to have reduced a shard wrongly."""
    withheld_at: float | None = None
    """When it last did not show a drawn state."""
    withheld_again_at: float | None = None
    """When it last did so for the second time within γ: forfeits as a failed audit does."""
    trusted_from: Epoch = Epoch(0)
    """Epochs before this one do not make it less of a newcomer."""
    sentence: str = ""
    """Of the latest verdict."""
    failure: str = ""
    """Of the latest failed one."""


class Chain(Struct):
    """What the chain said last."""

    block: int = 0
    highest: int = 0
    """The highest block that any look named."""
    owner_uid: int = 0
    uids: dict[Hotkey, int] = field(default_factory=dict)
    stake: dict[Hotkey, float] = field(default_factory=dict)
    permits: list[Hotkey] = field(default_factory=list)
    tempo: int = 0
    hyperparameters: dict[str, float | int | bool] = field(default_factory=dict)
    anchor: Anchored | None = None
    """The newest one."""


class WeightsReport(Struct, frozen=True):
    """What a validator said it has set on the chain."""

    at: float
    index: int
    """The journal record after which the weights were computed."""
    weights: tuple[tuple[int, float], ...]
    """By uid."""
    block: int
    sentence: str


class Pay(Struct):
    """Everything that pay follows from, besides the ledger."""

    closed_at: dict[int, float] = field(default_factory=dict)
    """When every stage had closed an epoch."""
    drawn: int = -1
    """Audits of this epoch and all before it are drawn."""
    asked: int = -1
    asked_block: int = 0
    """The highest block that was known then: the epoch is drawn by a later one."""
    """Up to which epoch the chain was asked for the block that draws."""
    unlogged: dict[int, dict[Hotkey, float]] = field(default_factory=dict)
    """By epoch: work units of passes that are in nobody's accepted log, so no audit could ever look at them."""
    void: dict[int, dict[Hotkey, Void]] = field(default_factory=dict)
    standing: dict[Hotkey, Standing] = field(default_factory=dict)
    dossiers: dict[int, dict[Hotkey, Dossier]] = field(default_factory=dict)
    audits: dict[ItemId, Audit] = field(default_factory=dict)
    audit_items: int = 0
    fresh: set[Hotkey] = field(default_factory=set)
    """Whose next log may begin with loaded parameters: it joined, was synchronised, or its upload did not count."""
    reviewers: dict[Hotkey, float] = field(default_factory=dict)
    """Validators and when they were last heard of."""
    replayed_passes: int = 0
    """Passes in audited segments so far, and the seconds that their replays took."""
    replay_s: float = 0.0
    chain: Chain = field(default_factory=Chain)
    weights: dict[Hotkey, WeightsReport] = field(default_factory=dict)
    """The latest of each validator."""

"""The run state: what the fold of the journal leaves behind.

Law: plain msgspec structs, changed in place by `machine.handle` and its parts only, holding no URL, no clock and no
object of another band, so that state == decode(encode(state)) and two replays of one journal are equal byte by byte
(but for the order inside a set, which each process chooses for itself). What can be looked up quickly lies beside it
(`index`) and is no part of it.
"""

from __future__ import annotations

from msgspec import Struct, field

from subnet.coordination.audit_state import Pay
from subnet.coordination.balance_state import Balance
from subnet.coordination.index import index_of
from subnet.coordination.merge_state import ClosedMerge, Merge, MergeRecord
from subnet.coordination.poison_state import Poison
from subnet.protocol.ids import Digest, Epoch, Hotkey, ItemId, MicroBatchId, Pass, Phase, Stage
from subnet.protocol.messages import Notice, Source, Work
from subnet.protocol.reasons import Reason
from subnet.protocol.run_spec import RunSpec
from subnet.scoring.ledger import Ledger

INCIDENTS_KEPT = 200
LOSSES_KEPT = 64


class Hop(Struct):
    """One stage of a micro-batch's pathway."""

    forward_by: Hotkey | None = None
    bound: bool = False
    """Whether `forward_by` holds the graph for a backward that is due still, so it goes to it first."""
    backward_by: Hotkey | None = None
    boundary: Source | None = None
    """Accepted output of the forward; None at the last stage."""
    gradient: Source | None = None
    """Accepted gradient with respect to the stage's input; None at stage 0."""
    forward_epoch: int = -1
    backward_epoch: int = -1
    """Epoch in which each pass was credited; -1 while it is due."""


class MicroBatch(Struct):
    """A micro-batch in flight. Its due piece is a function of its hops; see `routing.due`."""

    id: MicroBatchId
    epoch: Epoch
    """Stage 0's epoch when it was opened; its objects live under it."""
    opened_at: float
    hops: list[Hop]
    loss: float | None = None
    attempts: int = 0
    """Offers made so far, all passes together; part of every object key and item id."""
    offers: list[ItemId] = field(default_factory=list)
    """Open offers of the due piece, expired ones included: the first valid result wins."""
    barred: list[Hotkey] = field(default_factory=list)
    """Replicas that failed the due piece."""
    waiting_since: float = 0.0
    """When the due piece was last put into a queue."""
    waits_until: float = 0.0
    """How long a backward that waits is kept for the replica that did the forward."""
    accused: Source | None = None
    """An input of the due piece that somebody could not use: withheld until the orchestrator has looked at it."""
    accusers: list[Hotkey] = field(default_factory=list)
    generation: int = 0
    """Of the newest parameters that its forwards ran on; see `poison`."""


class Offer(Struct):
    """One piece of work given to one miner."""

    item: ItemId
    hotkey: Hotkey
    work: Work
    offered_at: float
    deadline: float
    expired: bool = False
    """Past its deadline: offered again elsewhere, but still welcome if it comes first."""


class Miner(Struct):
    """A hotkey that joined at least once."""

    hotkey: Hotkey
    stage: Stage
    session: str
    device: str
    joined_at: float
    last_seen: float
    live: bool
    synced_epoch: int
    """The epoch whose start parameters it holds; passes are given only while this is the stage's epoch."""
    number: int = 0
    """Its session's place in the order of all joins."""
    ready: bool = False
    """Whether it has exchanged since it joined: before that it is still loading."""
    free_slots: int = 0
    offers: list[ItemId] = field(default_factory=list)
    mean_s: dict[Pass, float] = field(default_factory=dict)
    """EMA of seconds from offer to result."""
    credited: dict[ItemId, float] = field(default_factory=dict)
    """Its latest credited passes and their work units: a result sent again (the answer was lost) hears of it."""
    faults: int = 0
    false_complaints: int = 0
    removed: Notice | None = None
    """Why it is not live."""


class StageState(Struct):
    """One stage: its phase, its parameters, who trains it, what waits for it."""

    stage: Stage
    epoch: Epoch
    phase: Phase
    phase_since: float
    opened_at: float
    """When the epoch's training began."""
    parameters: Source
    momentum: Source
    sentence: str
    reason: Reason = Reason.OK
    contributions: dict[Hotkey, int] = field(default_factory=dict)
    """B_m: micro-batches whose backward each replica did since its local state last equalled the epoch's start."""
    forward_ready: list[MicroBatchId] = field(default_factory=list)
    """Waiting micro-batches by number; so is the next one."""
    backward_ready: list[MicroBatchId] = field(default_factory=list)
    merge: Merge | None = None
    rules: int = 0
    """Which of `State.versions` this epoch is trained and merged by."""
    norms: list[list[float]] = field(default_factory=list)
    """Pseudo-gradient norms of the last five epochs."""
    merges: list[MergeRecord] = field(default_factory=list)
    closed: list[ClosedMerge] = field(default_factory=list)
    """Its latest merges, while they may be taken back."""
    generation: int = 0
    """How many merges the run had seen when these parameters came into use."""
    uploaded_at: float = 0.0
    reduced_at: float = 0.0
    empty_since: float | None = None
    """Since when it has no live replica."""


class Incident(Struct):
    """Something an operator may want to know of."""

    at: float
    reason: Reason
    sentence: str
    hotkey: Hotkey | None = None


class Evaluation(Struct):
    epoch: Epoch
    loss: float
    num_tokens: int
    at: float


class State(Struct, dict=True):
    """The whole run."""

    spec: RunSpec
    """The newest rules that every stage has taken over: routing, audits and pay go by them."""
    versions: list[RunSpec]
    """As the run began, and as the owner tuned it since."""
    digests: list[Digest]
    """Of the versions: whoever speaks under one of them is heard, for work outlives the rules it was opened under."""
    evaluators: tuple[Hotkey, ...]
    target_epochs: int
    opened_at: float
    at: float
    """Time of the last envelope."""
    stages: list[StageState]
    registered: set[Hotkey] = field(default_factory=set)
    miners: dict[Hotkey, Miner] = field(default_factory=dict)
    joins: int = 0
    micro_batches: dict[MicroBatchId, MicroBatch] = field(default_factory=dict)
    offers: dict[ItemId, Offer] = field(default_factory=dict)
    next_micro_batch: int = 0
    group_opened: int = 0
    """Micro-batches of the current group in flush mode."""
    completed: int = 0
    abandoned: int = 0
    passes_started: int = 0
    """Passes given out so far, those included that never came back."""
    passes_merged: int = 0
    """Passes behind the pseudo-gradients that entered a merge: of each micro-batch its forward and its backward."""
    first_completed_at: float | None = None
    last_completed_at: float = 0.0
    secrets: dict[int, str] = field(default_factory=dict)
    secret_asked: int = -1
    """Epoch of the newest secret that was asked for."""
    secret_due: bool = False
    """Whether it has not come yet."""
    merge_items: int = 0
    """Pieces of merge work so far: part of their ids, of their objects' keys and of every question to the shell."""
    ledger: Ledger = field(default_factory=Ledger)
    pay: Pay = field(default_factory=Pay)
    balance: Balance = field(default_factory=Balance)
    poison: Poison = field(default_factory=Poison)
    compute_s: float = 0.0
    """What miners said their accepted passes took."""
    recent_losses: list[float] = field(default_factory=list)
    epoch_losses: dict[int, list[float]] = field(default_factory=dict)
    """Sum and count of training losses by the last stage's epoch."""
    evaluations: list[Evaluation] = field(default_factory=list)
    incidents: list[Incident] = field(default_factory=list)
    incident_count: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    """How many results met each outcome, by 'outcome/reason'."""
    refusals: dict[str, int] = field(default_factory=dict)
    """Requests that did not pass the door, by reason."""

    @property
    def spec_digest(self) -> Digest:
        return self.digests[self.spec.version - 1]

    def rules_of(self, stage: int) -> RunSpec:
        """The rules that a stage's running epoch is trained and merged by."""
        return self.versions[self.stages[stage].rules]

    def oldest_epoch(self) -> int:
        """Every stage has closed all epochs before this one."""
        oldest = self.stages[0].epoch
        for stage in self.stages:
            if stage.epoch < oldest:
                oldest = stage.epoch
        return oldest

    def stage_of(self, hotkey: Hotkey) -> StageState:
        return self.stages[self.miners[hotkey].stage]

    def replicas(self, stage: int) -> list[Miner]:
        """Live miners of a stage, by time of joining."""
        return list(index_of(self).stages[stage].live.values())

    def num_replicas(self, stage: int) -> int:
        return len(index_of(self).stages[stage].live)

    def secret(self) -> bytes:
        """The newest epoch secret; draws of all stages use it."""
        return bytes.fromhex(self.secrets[max(self.secrets)])

    def incident(self, reason: Reason, sentence: str, hotkey: Hotkey | None = None) -> None:
        """Record for the operator; bounded, the count is exact."""
        self.incidents.append(Incident(at=self.at, reason=reason, sentence=sentence, hotkey=hotkey))
        self.incident_count += 1
        del self.incidents[:-INCIDENTS_KEPT]

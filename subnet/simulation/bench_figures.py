"""What `make bench` measures, and the arithmetic between the figures.

Law: plain records and pure arithmetic, no torch, no process, no clock; bench.json is exactly these records, so a table
can be made again from the file. Every ratio says what it divides by. Units are last in the names; losses are nats per
token.
"""

from __future__ import annotations

from statistics import mean

import msgspec
from msgspec import Struct

from subnet.model.split import split
from subnet.model.wire import boundary_size_bytes
from subnet.protocol.ids import Values
from subnet.protocol.run_spec import BoundarySpec, RunSpec

ONE_PROCESS = "one process, two threads"
TWO_PROCESSES = "two processes, one thread each, gradients all-reduced"


class Machine(Struct, frozen=True, kw_only=True):
    cores: int
    """Cores that everything was measured on; the processes are pinned to them where the system allows it."""
    processor: str
    system: str
    python: str
    torch: str


class Efficiency(Struct, frozen=True, kw_only=True):
    """Speed of one swarm against what one machine does without a swarm."""

    preset: str
    miners: int
    stages: int
    num_params: int
    """All stages together, boundaries included."""
    baseline_num_params: int
    """The same model uncut: what the baselines train."""
    micro_batch: tuple[int, int]
    """B, T: the same for the swarm and the baselines."""
    swarm_tokens: int
    swarm_span_s: float
    """From the first micro-batch's return to the end of the last merge."""
    merges: int
    journal_records: int
    baselines: dict[str, list[float]]
    """Tokens/s by name: measured before the swarm's run, and after it."""

    @property
    def swarm_tokens_per_s(self) -> float:
        return self.swarm_tokens / self.swarm_span_s

    @property
    def fastest_baseline(self) -> tuple[str, float]:
        """The faster one by its mean of before and after, and that mean."""
        return max(((name, mean(speeds)) for name, speeds in self.baselines.items()), key=lambda pair: pair[1])

    @property
    def drift(self) -> float:
        """How much faster the fastest baseline once was than another time, as a share: the machine's own unrest."""
        speeds = self.baselines[self.fastest_baseline[0]]
        return max(speeds) / min(speeds) - 1

    @property
    def ratio(self) -> float:
        return self.swarm_tokens_per_s / self.fastest_baseline[1]


class Learning(Struct, frozen=True, kw_only=True):
    """Held-out losses at equal tokens."""

    tokens: int
    """Trained on by every row."""
    swarm: float
    swarm_by_epoch: dict[str, float]
    reference: float
    """One process, same cut, bottleneck and quantiser, an inner step every k micro-batches."""
    reference_swarm_batch: float
    """The same, with a step every k x replicas micro-batches: what the replicas' average step amounts to."""
    uncompressed: float
    """The model uncut."""
    control: float
    """The reference with boundaries of width 0: nothing crosses but the side information (the tokens)."""
    unigram_entropy: float

    @property
    def swarm_vs_reference(self) -> float:
        return self.swarm / self.reference

    @property
    def control_vs_reference(self) -> float:
        return self.control / self.reference

    @property
    def below_unigram(self) -> float:
        return self.unigram_entropy - self.swarm


class Launch(Struct, frozen=True, kw_only=True):
    """The default run as its operator sees it: text not yet prepared, nothing cached by us."""

    first_micro_batch_s: float
    wall_s: float
    epochs: int
    largest_miner_mb: int
    orchestrator_mb: int
    orchestrator_loads_torch: bool


class Wire(Struct, frozen=True, kw_only=True):
    """Bytes of the objects that the default run wrote, headers and scales included."""

    d_model: int
    width: int
    tokens: int
    written_bytes: dict[str, int]
    """By kind, over all stages: the exact sizes of the objects behind accepted work."""
    object_bytes_per_token: dict[str, float]
    """What one boundary, and one gradient, costs a token on one link: measured on the objects in the store."""
    journal_bytes: int

    @property
    def bytes_per_token(self) -> dict[str, float]:
        """By kind: all links and merges together, over the tokens trained on."""
        return {kind: size / self.tokens for kind, size in self.written_bytes.items()}

    def ratio(self, kind: str, value_bytes: int) -> float:
        """How many times fewer bytes than x_BTD at `value_bytes` a value (bf16: 2, fp32: 4)."""
        return value_bytes * self.d_model / self.object_bytes_per_token[kind]


class Trust(Struct, frozen=True, kw_only=True):
    """Audits of the default run, and whether pay followed work among miners of different speeds."""

    audits_passed: int
    audits_failed: int
    audits_without_verdict: int
    """Not shown or unreadable."""
    audit_cost_share: float
    """Seconds of replay for one second of training."""
    speeds: str
    speeds_miners: int
    weights_vs_work: float
    """Pearson's r of weights by the journal and verified work, in the run with those speeds."""
    incentive_vs_work: float
    """The same of the incentive that the chain gave each uid in its last epoch."""


class Compression(Struct, frozen=True, kw_only=True):
    """A boundary by arithmetic alone."""

    d_model: int
    width: int
    micro_batch: tuple[int, int]
    bytes_per_token: float

    @property
    def ratio_vs_bf16(self) -> float:
        return 2 * self.d_model / self.bytes_per_token


class Row(Struct, frozen=True, kw_only=True):
    """One line of the table."""

    section: str
    name: str
    value: float
    shown: str
    target: str = ""
    met: bool | None = None
    """None: there is no target, or a quick run is too short to judge it."""


class Bench(Struct, frozen=True, kw_only=True):
    """bench.json."""

    measured_at: str
    """UTC."""
    command: str
    quick: bool
    duration_s: float
    machine: Machine
    efficiency: list[Efficiency]
    learning: Learning
    launch: Launch
    trust: Trust
    wire: Wire
    wire_128x: Compression
    table: list[Row] = []
    """Made from the rest by `bench_table.rows`; written out for readers of the file."""


def widest(d_model: int, ratio: int, micro_batch: tuple[int, int], scale_group_tokens: int) -> Compression:
    """The largest K at int8 whose bytes, framing included, are at most x_BTD's in bf16 divided by `ratio`."""
    batch, length = micro_batch
    found = None
    for width in range(1, d_model + 1):
        boundary = BoundarySpec(
            width=width, hidden=1, values=Values.INT8, scale_group_tokens=scale_group_tokens, token_table=False
        )
        per_token = boundary_size_bytes(boundary, batch, length) / (batch * length)
        if per_token > 2 * d_model / ratio:
            break
        found = Compression(d_model=d_model, width=width, micro_batch=micro_batch, bytes_per_token=per_token)
    if found is None:
        raise ValueError(f"no width of a {batch}x{length} micro-batch is {ratio}x smaller than D={d_model} in bf16")
    return found


# ---- the references' RunSpecs ----------------------------------------------------------------------------------------


def with_boundary(spec: RunSpec, boundary: BoundarySpec, num_stages: int) -> RunSpec:
    """The same run with another boundary and cut; derived numbers follow."""
    data = spec.data
    return msgspec.structs.replace(
        spec,
        boundary=boundary,
        boundary_size_bytes=boundary_size_bytes(boundary, data.micro_batch_size, data.seq_len),
        stages=split(spec.model, boundary, num_stages, data.seq_len),
    )


def uncut(spec: RunSpec) -> RunSpec:
    """The whole model as one stage: no bottleneck, no quantiser, no token table."""
    whole = msgspec.structs.replace(spec.boundary, width=spec.model.d_model, values=Values.FP32, token_table=False)
    return with_boundary(spec, whole, 1)


def zeroed(spec: RunSpec) -> RunSpec:
    """Nothing crosses a boundary; the receiving side keeps its side information."""
    return with_boundary(spec, msgspec.structs.replace(spec.boundary, width=0), spec.num_stages)


def joint_batch(spec: RunSpec, num_miners: int) -> int:
    """Micro-batches behind one inner step of all replicas of a stage together."""
    return spec.inner.micro_batches_per_step * max(1, num_miners // spec.num_stages)


def in_one_go(spec: RunSpec, num_micro_batches: int, per_step: int) -> RunSpec:
    """A step every `per_step` micro-batches, and the learning rate's whole course over one epoch of all of them."""
    steps = -(-num_micro_batches // per_step)
    warmup = min(spec.inner.warmup_steps, steps)
    inner = msgspec.structs.replace(
        spec.inner, micro_batches_per_step=per_step, warmup_steps=warmup, decay_steps=max(1, steps - warmup)
    )
    return msgspec.structs.replace(spec, inner=inner)

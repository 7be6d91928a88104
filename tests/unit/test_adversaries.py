"""Adversaries against the parts of a miner they replace: well-formed in every book, and wrong in the numbers.

Each plays one epoch of one stage inside the real `Replica`, which logs and commits for it; then every segment is
replayed and judged as a validator would. An honest trainer plays the same part beside it, so a harness that condemns
everybody is noticed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import pairwise

import msgspec
import numpy as np
import pytest

from subnet import presets
from subnet.adversaries import catalogue
from subnet.adversaries.catalogue import CATALOGUE, Adversary
from subnet.adversaries.names import Name
from subnet.adversaries.poisoner import STRETCH
from subnet.data.sampling import Batches
from subnet.errors import ConfigError, PeerFault
from subnet.merging import agreement, compression
from subnet.merging.butterfly import assign
from subnet.merging.shards import ShardReduction, range_digest
from subnet.miner.replica import Replica
from subnet.miner.snapshots import MemorySnapshots
from subnet.miner.worklog import Told
from subnet.model import wire
from subnet.model.initial import initial_parameters
from subnet.model.outer import Upload
from subnet.model.replay import Replay, ReplayPass, Segment
from subnet.model.trainer import Trainer
from subnet.model.training_state import TrainingState
from subnet.protocol import keys
from subnet.protocol.ids import Digest, Epoch, Hotkey, ItemId, MicroBatchId, Pass, RunId, Stage, Values
from subnet.protocol.messages import AuditFigures, Commitment, ManifestEntry, PassWork, Source, Target
from subnet.protocol.reasons import Reason
from subnet.protocol.run_spec import DataFile, DataSpec, RunSpec
from subnet.scoring.audit import check_log, judge

RUN = RunId("run")
FILE = DataFile(key=keys.make(RUN, 0, 0, "text", keys.Kind.DATA), digest=Digest("0" * 64), size_bytes=1)
DATA = DataSpec(tokenizer=FILE, train=(FILE,), validation=(FILE,), micro_batch_size=2, seq_len=16)
TOKENS = np.random.default_rng(0).integers(0, 256, 5_000).astype(np.uint16)
STAGES, K, MICRO_BATCHES = 3, 2, 9
"""Nine micro-batches at k = 2: the last inner step is the upload's, over a single one."""
TRAINERS = [name for name, adversary in CATALOGUE.items() if adversary.trainer is not Trainer]


def make_spec(values: Values, segment_steps: int) -> RunSpec:
    preset = presets.equivalence(presets.Size(STAGES, STAGES, 2), width=8)
    preset = preset._replace(
        boundary=msgspec.structs.replace(preset.boundary, values=values),
        inner=msgspec.structs.replace(preset.inner, micro_batches_per_step=K),
        audit=msgspec.structs.replace(preset.audit, rate=1.0, segment_steps=segment_steps),
    )
    return presets.run_spec(preset, run_id=RUN, seed=7, num_stages=STAGES, data=DATA)


class Play:
    """One epoch of one stage, played by `kind`; what went over the wire is kept for the audit."""

    def __init__(self, kind: type[Trainer], stage: int, values: Values = Values.INT8, segment_steps: int = 2) -> None:
        self.spec, self.stage = make_spec(values, segment_steps), Stage(stage)
        self.batches = Batches(TOKENS, self.spec.seed, 2, 16)
        self.trainer = kind(self.spec, self.stage, "cpu", self.batches)
        self.snapshots = MemorySnapshots()
        self.replica = Replica(self.spec, self.stage, self.trainer, self.snapshots)
        self.anchor_P = initial_parameters(self.spec, self.stage)
        encoded = compression.encode(Values.FP32, self.anchor_P)
        zeros = compression.encode(Values.FP32, np.zeros_like(self.anchor_P))
        self.replica.load(Epoch(0), (source("start"), source("momentum")), (encoded, zeros))
        self.passes: dict[ItemId, ReplayPass] = {}
        self.upload, self.told = self._train()

    def _train(self) -> tuple[Upload, Told]:
        """Two micro-batches are on their way at once, so backwards meet steps that came since their forward."""
        for number in range(MICRO_BATCHES):
            if self.stage == STAGES - 1:
                self._run(Pass.LOSS, number)
                continue
            self._run(Pass.FORWARD, number)
            if number:
                self._run(Pass.BACKWARD, number - 1)
        if self.stage < STAGES - 1:
            self._run(Pass.BACKWARD, MICRO_BATCHES - 1)
        return self.replica.close_epoch(Epoch(0)), self.replica.told()

    def _run(self, kind: Pass, number: int) -> None:
        stage_input = self.tensor(number, 1.0) if self.stage else None
        gradient = self.tensor(-1 - number, 1e-3) if kind is Pass.BACKWARD else None
        item = ItemId(f"{kind.value[0]}{number}.{self.stage}.0")
        has_output = kind is Pass.FORWARD or self.stage > 0
        work = PassWork(
            item=item,
            kind=kind,
            micro_batch=MicroBatchId(number),
            stage=self.stage,
            epoch=Epoch(0),
            stage_input=source("in") if self.stage else None,
            gradient=source("gradient") if gradient else None,
            output=Target(key=source("out").key, size_bytes=1) if has_output else None,
            deadline_s=1.0,
        )
        done = self.replica.run_pass(work, stage_input, gradient)
        self.passes[item] = ReplayPass(
            item, kind, work.micro_batch, done.param_version, stage_input, gradient, done.output, done.loss
        )

    def tensor(self, seed: int, scale: float) -> bytes:
        z_BTK = np.random.default_rng(seed % 2**32).standard_normal((2, 16, self.spec.boundary.width)) * scale
        return wire.encode(self.spec, z_BTK.astype(np.float32), None)

    # ---- the audit ---------------------------------------------------------------------------------------------------

    def audits(self) -> Iterator[AuditFigures]:
        """The figures of every segment, from the committed states as they would be revealed."""
        sent_P = compression.decode(self.upload.data, self.spec.merge.upload_values, len(self.anchor_P))
        for number, (begins, ends) in enumerate(pairwise(self.told.commitments)):
            is_last = number == len(self.told.commitments) - 2
            segment = Segment(
                epoch=Epoch(0),
                anchor_P=self.anchor_P,
                start=self._state(begins) if number else None,
                start_version=begins.version,
                applies_after=None,
                passes=[self.passes[one.item] for one in self.told.log[begins.position : ends.position]],
                end_step=ends.step,
                end=self._state(ends),
                upload_P=sent_P if is_last else None,
            )
            yield Replay(self.spec, self.stage, "cpu", self.batches).measure(segment)

    def verdicts(self) -> list[bool]:
        tolerances, values = self.spec.audit.tolerances, self.spec.boundary.values
        return [judge(figures, tolerances, values)[0] for figures in self.audits()]

    def _state(self, one: Commitment) -> TrainingState:
        parts = self.snapshots.parts(one.digest)
        assert parts is not None
        vectors = tuple(compression.decode(part, Values.FP32, len(self.anchor_P)) for part in parts)
        return TrainingState(one.version, one.step, one.optimizer_steps, vectors)

    def form_problem(self) -> str | None:
        """What is wrong with the books, as the orchestrator would say it."""
        steps = self.spec.audit.segment_steps
        return check_log(self.told.log, self.told.commitments, 0, K, steps, loaded=True, merged=False)


def source(name: str) -> Source:
    return Source(key=keys.make(RUN, 0, 0, name, keys.Kind.BOUNDARY), digest=Digest("0" * 64), size_bytes=1)


# ---- what trains -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [Values.INT8, Values.FP32])
@pytest.mark.parametrize("stage", range(STAGES))
def test_the_honest_one_passes_every_audit(stage: int, values: Values) -> None:
    """1. An honest miner beside the cheats: every one of its segments is replayed, and all of them pass."""
    play = Play(Trainer, stage, values)
    assert play.form_problem() is None
    assert play.verdicts() == [True] * 3


@pytest.mark.parametrize("values", [Values.INT8, Values.FP32])
@pytest.mark.parametrize("stage", range(STAGES))
@pytest.mark.parametrize("name", [name for name in TRAINERS if name != Name.POISONER])
def test_a_cheat_fails_whichever_segment_is_drawn(name: str, stage: int, values: Values) -> None:
    """2. A cheat sits in any stage; whichever segment the block hash draws, the replay convicts it. Nothing in its
    books would have: log, commitments and the states it reveals fit each other and the rules."""
    play = Play(CATALOGUE[name].trainer, stage, values)
    assert play.form_problem() is None
    assert play.verdicts() == [False] * 3


def test_the_poisoner_is_honest_but_for_its_upload() -> None:
    """2b. It trains as everybody does: only the audit whose segment ends in the upload finds it. What it uploads is the
    honest pseudo-gradient turned round and stretched, under the honest norm."""
    play, honest = Play(CATALOGUE[Name.POISONER].trainer, 1, Values.FP32), Play(Trainer, 1, Values.FP32)
    assert play.form_problem() is None and play.verdicts() == [True, True, False]
    count = play.spec.stages[1].num_params
    turned, true = (compression.decode(one.upload.data, Values.FP32, count) for one in (play, honest))
    assert np.allclose(turned, -STRETCH * true, rtol=1e-2, atol=1e-4) and play.upload.norm == honest.upload.norm


@pytest.mark.parametrize("stage", range(STAGES))
@pytest.mark.parametrize("name", TRAINERS)
def test_nothing_shows_from_outside(name: str, stage: int) -> None:
    """3. The orchestrator and the neighbours see what an honest miner would show: the same passes on versions that
    advance alike, tensors that decode, losses in range, as many commitments, an upload of the right size."""
    play, honest = Play(CATALOGUE[name].trainer, stage), Play(Trainer, stage)
    assert [one.item for one in play.told.log] == [one.item for one in honest.told.log]
    counted = [(c.position, c.version, c.step, c.optimizer_steps) for c in play.told.commitments]
    assert counted == [(c.position, c.version, c.step, c.optimizer_steps) for c in honest.told.commitments]
    assert len({c.digest for c in play.told.commitments}) == len(counted)
    for item, one in play.passes.items():
        other = honest.passes[item]
        assert (one.output is None, one.loss is None) == (other.output is None, other.loss is None)
        if one.output is not None and other.output is not None:
            size, true_size = rms(play.spec, one.output), rms(play.spec, other.output)
            assert 0.02 < size / true_size < 50, item
        if one.loss is not None:
            assert 0 < one.loss < 1.2 * np.log(play.spec.model.vocab_size)
    assert len(play.upload.data) == len(honest.upload.data)
    outputs = [one.output for one in play.passes.values() if one.output]
    assert len(set(outputs)) == len(outputs), "no output comes twice"


def rms(spec: RunSpec, data: bytes) -> float:
    return float(np.sqrt(np.square(wire.decode(spec, data)).mean()))


def test_pseudo_gradients_are_as_large_as_theirs_should_be() -> None:
    """4. Norm screens see nothing in the two that make steps up; the one that accumulates nothing sends zeros."""
    honest = Play(Trainer, 1).upload.norm
    for name in (Name.FREELOADER, Name.UPDATE_SKIPPER):
        assert 0.1 < Play(CATALOGUE[name].trainer, 1).upload.norm / honest < 2
    assert Play(CATALOGUE[Name.LAZY_BACKWARD].trainer, 1).upload.norm == 0.0


def test_a_skipped_step_shows_in_the_state_alone() -> None:
    """5. One inner step to a segment: all outputs of the update skipper are exactly what the replay computes, so an
    audit that compared nothing but outputs would pass it for ever."""
    play = Play(CATALOGUE[Name.UPDATE_SKIPPER].trainer, 2, segment_steps=1)
    for figures in play.audits():
        assert figures.outputs and (figures.quantiser_steps, figures.loss) == (0.0, 0.0)
        assert figures.state > 10 * play.spec.audit.tolerances.state
    assert play.verdicts() == [False] * 5


def test_lazy_backwards_show_without_any_gradient_sent() -> None:
    """6. At stage 0 there is no gradient to compare, and the forwards are honest: the parameters give it away."""
    play = Play(CATALOGUE[Name.LAZY_BACKWARD].trainer, 0, segment_steps=1)
    first = next(play.audits())
    assert first.outputs and first.quantiser_steps == 0.0 and first.state > 0.9


@pytest.mark.parametrize("name", TRAINERS)
def test_a_cheat_is_the_same_cheat_again(name: str) -> None:
    """7. A failing seed is a reproduction: the same calls give the same bytes."""
    one, other = (Play(CATALOGUE[name].trainer, 1) for _ in range(2))
    assert one.passes == other.passes and one.upload == other.upload


@pytest.mark.parametrize("name", TRAINERS)
def test_a_cheat_blames_bad_inputs_like_everybody(name: str) -> None:
    """8. A neighbour sends garbage: a miner that swallowed it would give itself away, and be blamed for it."""
    play = Play(CATALOGUE[name].trainer, 1)
    with pytest.raises(PeerFault) as fault:
        play.trainer.forward(MicroBatchId(50), b"garbage")
    assert (fault.value.code, fault.value.evidence) == (Reason.BAD_SIZE, "stage_input")
    with pytest.raises(PeerFault) as fault:
        play.trainer.backward(MicroBatchId(50), play.tensor(1, 1.0), b"garbage")
    assert (fault.value.code, fault.value.evidence) == (Reason.BAD_SIZE, "gradient")


def test_what_is_not_computed_costs_no_input() -> None:
    """9. A backward that is made up needs no stage input: such a miner does not download it a second time."""
    for name in (Name.FREELOADER, Name.LAZY_BACKWARD):
        assert Play(CATALOGUE[name].trainer, 1).trainer.holds(MicroBatchId(50))


# ---- what merges -----------------------------------------------------------------------------------------------------

COUNT = 70_001


def manifest_of(weights: Sequence[float]) -> tuple[tuple[ManifestEntry, ...], list[bytes]]:
    rng = np.random.default_rng(len(weights))
    uploads = [compression.encode(Values.INT8, rng.standard_normal(COUNT).astype(np.float32)) for _ in weights]
    entries = tuple(
        ManifestEntry(
            hotkey=Hotkey(f"hk{number}"),
            weight=weight,
            scale=1.0,
            source=Source(
                key=keys.make(RUN, 0, 0, f"hk{number}", keys.Kind.UPLOAD),
                digest=Digest(hashlib.sha256(data).hexdigest()),
                size_bytes=len(data),
            ),
            chunk_digests=compression.chunk_digests(data, Values.INT8, COUNT),
        )
        for number, (weight, data) in enumerate(zip(weights, uploads, strict=True))
    )
    return entries, uploads


def reduce(kind: type[ShardReduction], weights: Sequence[float], owner: Hotkey) -> tuple[dict[int, Digest], int]:
    """What an owner reports by shard, and how many bytes it read for it."""
    manifest, uploads = manifest_of(weights)
    assignments = assign(b"s" * 32, 0, 0, [entry.hotkey for entry in manifest], COUNT, 2)
    shards = [shard for shard, owners in assignments if owner in owners]
    job, size_bytes = kind(manifest, shards, Values.INT8, COUNT), 0
    for piece in job.pieces:
        reads = job.reads(piece)
        bodies = [uploads[manifest.index(r.entry)][r.offset : r.offset + r.size_bytes] for r in reads]
        size_bytes += sum(len(body) for body in bodies)
        job.add(piece, bodies)
    return {s.index: range_digest(g_S) for s, g_S in zip(shards, job.results(), strict=True)}, size_bytes


@pytest.mark.parametrize("num_replicas", [2, 3, 5])
def test_a_wrong_merger_is_named_by_the_recomputation(num_replicas: int) -> None:
    """10. Every shard of the wrong merger is disputed; recomputed, it is faulty in all of them and nobody else is."""
    weights = [10.0 + number for number in range(num_replicas)]
    hotkeys = [Hotkey(f"hk{number}") for number in range(num_replicas)]
    assignments = assign(b"s" * 32, 0, 0, hotkeys, COUNT, 2)
    honest = {hotkey: reduce(ShardReduction, weights, hotkey)[0] for hotkey in hotkeys}
    truth = {index: digest for said in honest.values() for index, digest in said.items()}
    cheat = hotkeys[-1]
    reports = honest | {cheat: reduce(CATALOGUE[Name.WRONG_MERGER].reduction, weights, cheat)[0]}
    first = agreement.settle(assignments, reports, {})
    assert set(first.disputed) == set(reports[cheat])
    settled = agreement.settle(assignments, reports, {index: truth[index] for index in first.disputed})
    assert settled.faulty == {cheat: tuple(sorted(reports[cheat]))} and not settled.disputed


def test_a_wrong_merger_reads_one_upload() -> None:
    """11. What it gains: of five uploads it reads one. With a single upload of weight its result is the right one."""
    kind, hotkey = CATALOGUE[Name.WRONG_MERGER].reduction, Hotkey("hk0")
    weights = [10.0] * 5
    assert reduce(ShardReduction, weights, hotkey)[1] == 5 * reduce(kind, weights, hotkey)[1]
    alone = [0.0, 12.0, 0.0]
    assert reduce(kind, alone, hotkey)[0] == reduce(ShardReduction, alone, hotkey)[0]


# ---- by name ---------------------------------------------------------------------------------------------------------


def test_every_name_is_somebody() -> None:
    """12. Names and catalogue cannot drift apart; no adversary is a copy of the honest miner; each says its ways."""
    assert set(CATALOGUE) == set(Name) and len(set(CATALOGUE.values())) == len(Name)
    assert Adversary() not in CATALOGUE.values()
    for adversary in CATALOGUE.values():
        (part,) = {*adversary} - {*Adversary()}
        assert part.__doc__ and all(word in part.__doc__ for word in ("Skips", "Gains", "Caught"))


def test_an_unknown_name_is_an_operators_mistake() -> None:
    """13. A typo on a miner's command line gives one line; no name gives an honest miner."""
    assert catalogue.find("") == Adversary()
    with pytest.raises(ConfigError, match="--adversary: 'freerider' is not known; choose one of freeloader, "):
        catalogue.find("freerider")

"""What must be true when a storm is over and the run has ended by itself.

Law: a reading; raises PromiseBroken at the first promise that does not hold.
"""

from __future__ import annotations

from subnet.coordination.settlement import sheet
from subnet.merging import compression
from subnet.miner.line import Ending
from subnet.miner.receipts import parse_receipts
from subnet.orchestrator.restoring import restore
from subnet.protocol.ids import Hotkey, Values
from subnet.protocol.reasons import Reason
from subnet.simulation.modelled import ModelledTrainer
from subnet.simulation.promises import PromiseBroken
from subnet.simulation.storm_world import StormWorld
from subnet.storage.memory import MemoryJournal
from subnet.transport.transfer import digest_of


async def judge_end(world: StormWorld, pair: tuple[str, str] | None) -> None:
    """`pair`: a cheat and an honest machine as fast as it, where there is one."""
    restored = await restore(MemoryJournal(world.records))
    replayed = restored.state if restored is not None else None
    assert replayed is not None
    world.compare(replayed)
    world.promises.emission(world.state)
    for hotkey in world.machines:
        _miner(world, hotkey)
    if pair is not None:
        scores = sheet(world.state).emission.scores
        earned, fair = (scores.get(Hotkey(name), 0.0) for name in pair)
        if earned > fair:
            said = f"the cheat scores {earned:g}, the honest one {fair:g}"
            raise PromiseBroken("an honest miner never earns less than an equally fast cheat", said)


def _miner(world: StormWorld, hotkey: Hotkey) -> None:
    one, state, participant = world.machines[hotkey], world.state, world.miners[hotkey]
    assert participant.task is not None
    ending = None if participant.task.cancelled() else participant.task.result()
    lines = parse_receipts(one.receipts.getvalue())
    left = isinstance(ending, Ending) and ending.reason is Reason.TARGET_REACHED
    world.promises.receipts(state, hotkey, lines, complete=left and participant.starts == 1 and not one.disk_refused)
    if isinstance(ending, Ending) and not left and hotkey not in world.promises.explained:
        raise PromiseBroken("an honest miner is never sent away", f"{hotkey}: {ending.sentence} ({ending.reason})")
    standing = state.pay.standing.get(hotkey)
    if standing is not None and standing.failed_at is not None and hotkey not in world.promises.explained:
        raise PromiseBroken("nobody honest is blamed", f"{hotkey} failed an audit: {standing.failure}")
    trainer = participant.trainer
    if left and isinstance(trainer, ModelledTrainer) and trainer.is_loaded:
        stage = state.miners[hotkey].stage
        known = world.promises.start_of(stage, trainer.epoch)
        digest = digest_of(compression.encode(Values.FP32, trainer.anchor_P))
        if known is not None and digest != known:
            said = f"{hotkey} starts epoch {trainer.epoch} of stage {stage} at {digest[:8]}, the stage at {known[:8]}"
            raise PromiseBroken("one digest per stage at each epoch's start", said)

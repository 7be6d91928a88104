"""Merge work given and taken back: the small steps that every part of a merge shares.

Law: merge work takes no slot; it goes out with the miner's next reply, and only while its offer is open is anybody
waited for.
"""

from __future__ import annotations

from subnet.coordination import phases, routing
from subnet.coordination.effects import Deliver, Effect, Say
from subnet.coordination.index import index_of
from subnet.coordination.state import Miner, Offer, StageState, State
from subnet.protocol.ids import Hotkey, ItemId, Phase
from subnet.protocol.messages import ApplyWork, PassWork, ReduceWork, RevealWork, SyncWork, UploadWork, Work
from subnet.protocol.reasons import Reason


def give(state: State, stage: StageState, miner: Miner, work: Work, at: float) -> Deliver:
    """Merge work does not take a slot: it goes out with the next reply."""
    offer = Offer(item=work.item, hotkey=miner.hotkey, work=work, offered_at=at, deadline=at + work.deadline_s)
    state.offers[work.item] = offer
    miner.offers.append(work.item)
    index = index_of(state)
    index.gave(offer)
    index.file_miner(state, miner)
    return Deliver(miner.hotkey)


def next_number(state: State) -> int:
    """A number of its own for every piece of merge work, so that neither an id nor a key is ever used twice."""
    state.merge_items += 1
    return state.merge_items


def item_id(letter: str, stage: StageState, number: int, hotkey: Hotkey) -> ItemId:
    return ItemId(f"{letter}{stage.stage}.{stage.epoch}.{number}.{hotkey}")


def open_offers(state: State, stage: StageState, kind: type[Work]) -> list[Offer]:
    return list(index_of(state).stages[stage.stage].given[kind].values())


def withdraw_all(state: State, stage: StageState, kind: type[Work]) -> None:
    for offer in open_offers(state, stage, kind):
        routing.withdraw(state, offer.item)


def resume_training(state: State, stage: StageState, at: float, sentence: str) -> list[Effect]:
    """Nothing to merge: the epoch goes on, with B_min micro-batches to do again."""
    stage.merge, stage.opened_at = None, at
    return [Say(phases.move(stage, Phase.TRAINING, at, Reason.OK, sentence))]


def merge_work_of(state: State, miner: Miner) -> list[UploadWork | ReduceWork | ApplyWork | SyncWork]:
    """What a miner was given for merges."""
    return [w for w in (state.offers[item].work for item in miner.offers) if not isinstance(w, PassWork | RevealWork)]

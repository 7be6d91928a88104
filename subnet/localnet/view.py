"""The live view of a local run on a terminal: one page, made anew from every status.

    epochs, tokens, speed          losses with their course          merges, audits, chain
    each stage: phase and sentence, and its miners with state, score and weight
    each uid as the chain has it: stake, incentive, dividends, emission
    why: each state that somebody may wonder about, with reason, sentence and remedy          the latest incidents

Law: `page` is a pure function of a status, the course so far and the chain's reading; a field that is missing leaves
its place empty. What does not fit is said to be left out, the least telling first. `screen` puts pages on a terminal.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from subnet.chain.base import Pay, Subnet
from subnet.localnet.course import Course, sparks
from subnet.localnet.public_status import Replica, Slip, StageStatus, Status
from subnet.localnet.words import cut, name_of, printable, remedy_of
from subnet.protocol.messages import Neuron
from subnet.protocol.reasons import Reason

HEIGHT = 40
"""Lines, where nobody says how many there are."""
REST_LINES = 24
"""What the page holds beside the rows of miners and uids, roughly."""
NAMES_MAX = 4
INCIDENTS = 3
GOOD, WAITING, BAD = "green", "yellow", "red"
STYLES: dict[str, str] = {
    **dict.fromkeys((Reason.BUSY, Reason.OK, Reason.PAID), GOOD),
    **dict.fromkeys((Reason.AUDIT_FAILED, Reason.WRONG_SHARD, Reason.NOT_REVEALED, Reason.SKIPPED_MERGE), BAD),
    **dict.fromkeys((Reason.SILENT, Reason.NOT_REGISTERED, Reason.NO_UID), BAD),
}
"""By reason; the others wait for something."""
COLUMNS = (("miner", 10), ("uid", 4), ("state", 14), ("done", 4), ("score", 8), ("weight", 6), ("pay", 15))
UID_COLUMNS = (("on chain", 12), ("uid", 4), ("stake α", 12), ("incentive", 9), ("dividends", 9), ("α", 9))
NOTHING = Pay(0.0, 0.0, 0.0)


def page(
    status: Status,
    course: Course,
    names: Mapping[str, str],
    subnet: Subnet | None = None,
    height: int = HEIGHT,
) -> RenderableType:
    """Everything on one page of about `height` lines. `names` are the miners' names by hotkey."""
    room = height - REST_LINES - 2 * len(status.stages)
    rows_max, uids_max = max(2, room // max(1, len(status.stages))), max(3, room * 2 // 3)
    parts: list[RenderableType] = [
        _headline(status, course),
        _losses(status, course),
        _merges(status),
        _audits(status),
        _chain(status, names, subnet),
    ]
    for number, stage in enumerate(status.stages):
        parts += [_stage(status, stage), _miners(status, stage, names, subnet, rows_max, show_header=number == 0)]
    if subnet is not None:
        parts.append(uid_table(subnet, names, uids_max))
    return Group(*parts, *_reasons(status, names, max(3, (height - REST_LINES) // 2)), *_incidents(status, names))


# ---- the run ---------------------------------------------------------------------------------------------------------


def _headline(status: Status, course: Course) -> Text:
    epochs = [stage.epoch for stage in status.stages]
    minutes, seconds = divmod(int(course.now_s), 60)
    said = [
        f"{minutes}:{seconds:02d}",
        f"epoch {min(epochs, default=0)}" + (f" of {status.target_epochs}" if status.target_epochs else ""),
        f"{status.micro_batches:,} micro-batches",
        f"{status.tokens:,} tokens",
    ]
    speed = _training_speed(status) if status.finished else course.tokens_per_s
    said += [f"{speed:,.0f} tokens/s" + (" while training" if status.finished else "")] if speed is not None else []
    said += ["finished" if status.finished else f"{status.in_flight} in flight"]
    said += [f"{status.abandoned} abandoned"] if status.abandoned else []
    said += [f"goodput {status.goodput:.0%}"] if status.goodput is not None else []
    return _line("run", " · ".join(said), "bold")


def _training_speed(status: Status) -> float | None:
    first_at = status.first_completed_at
    span_s = status.last_completed_at - first_at if first_at is not None else 0.0
    # the first micro-batch opens the span, so its own tokens are not counted in it
    counted = status.tokens - status.tokens / max(1, status.micro_batches)
    return counted / span_s if span_s > 0 else None


def _losses(status: Status, course: Course) -> Text:
    training = f"training {status.loss:.3f} " if status.loss is not None else "training - "
    validation = [evaluation.loss for evaluation in status.evaluations]
    measured = f"   validation {validation[-1]:.3f} after {_epochs(status)} " if validation else "   validation - "
    return _line("loss", training + sparks(course.losses) + measured + sparks(validation))


def _epochs(status: Status) -> str:
    epoch = status.evaluations[-1].epoch
    return f"{epoch} epoch" + ("" if epoch == 1 else "s")


def _merges(status: Status) -> Text:
    merges = [merge for stage in status.stages for merge in stage.merges]
    sums = {
        name: sum(getattr(merge, name) for merge in merges)
        for name in ("shards", "agreed", "single", "lost", "disputed")
    }
    shards, handed_on = sums.pop("shards"), sum(merge.handed_on for merge in merges)
    said = f"{len(merges)} newest, {shards} shards: " + ", ".join(f"{count} {name}" for name, count in sums.items())
    said += f", {handed_on} handed on" if handed_on else ""
    said += f", {len(status.rollbacks)} rolled back" if status.rollbacks else ""
    return _line("merges", said if merges else "none yet", BAD if sums["disputed"] or status.rollbacks else "")


def _audits(status: Status) -> Text:
    audits = status.audits
    said = f"{audits.passed} passed, {audits.failed} failed, {audits.not_revealed} not revealed, {audits.open} open"
    said += f", {audits.unreadable} unreadable" if audits.unreadable else ""
    if audits.cost_share is not None:
        said += f"; replays cost {audits.cost_share:.1%} of training compute"
    return _line("audits", said, BAD if audits.failed else "")


def _chain(status: Status, names: Mapping[str, str], subnet: Subnet | None) -> Text:
    """Whose weights stand, and where the journal's head is anchored."""
    block = subnet.block.number if subnet is not None else status.chain.block
    said = [f"block {block}" + (f", a chain epoch every {subnet.tempo} blocks" if subnet is not None else "")]
    if (anchor := status.chain.anchor) is not None:
        said.append(f"the journal's head at record {anchor.index} is anchored in block {anchor.block}")
    for hotkey, report in status.pay.validators.items():
        did = f"set the weights of record {report.index}" if report.block else "could not set weights"
        said.append(f"{name_of(names, hotkey)} {did}: {report.sentence}")
    return _line("chain", "; ".join(said))


# ---- stages and miners -----------------------------------------------------------------------------------------------


def _stage(status: Status, stage: StageStatus) -> Text:
    said = f"{stage.phase or '-'}, epoch {stage.epoch}"
    if any(other.spec_version != stage.spec_version for other in status.stages):
        said += f", RunSpec {stage.spec_version}"  # the owner has tuned it, and not all stages are there yet
    text = _line(f"stage {stage.stage}", said, "bold")
    text.append(f"  {printable(stage.sentence)}", WAITING if stage.phase != "training" else "dim")
    return text


def _miners(
    status: Status,
    stage: StageStatus,
    names: Mapping[str, str],
    subnet: Subnet | None,
    rows_max: int,
    *,
    show_header: bool,
) -> Table:
    table = Table(
        box=None, expand=True, pad_edge=False, show_header=show_header, header_style="dim", padding=(0, 1, 0, 0)
    )
    for name, width in COLUMNS:
        right = name in ("uid", "done", "score", "weight")
        table.add_column(name, width=width, no_wrap=True, overflow="ellipsis", justify="right" if right else "left")
    table.add_column("sentence", ratio=1, no_wrap=True, overflow="ellipsis")
    neurons = subnet.neurons if subnet is not None else ()
    uids: dict[str, int] = {neuron.hotkey: neuron.uid for neuron in neurons}

    def notable(replica: Replica) -> tuple[bool, bool, str]:
        reason = status.pay.scores.get(replica.hotkey, Slip()).reason
        return replica.live and STYLES.get(reason) != BAD, replica.reason in ("busy", "ok"), replica.hotkey

    replicas = sorted(stage.replicas, key=notable)
    shown = sorted(replicas[:rows_max], key=lambda replica: name_of(names, replica.hotkey))
    for replica in shown:
        slip = status.pay.scores.get(replica.hotkey, Slip())
        uid = slip.uid if slip.uid is not None else uids.get(replica.hotkey)
        table.add_row(
            Text(name_of(names, replica.hotkey)),
            Text("-" if uid is None else str(uid)),
            _reason(replica.reason or ("-" if replica.live else "away")),
            Text(str(replica.epoch_micro_batches)),
            Text(f"{slip.score:.2f}"),
            Text(f"{slip.weight:.1%}"),
            _reason(slip.reason or "-"),
            Text(printable(replica.sentence), "dim"),
        )
    if left := Counter(replica.reason or "-" for replica in replicas[rows_max:]):
        counts = ", ".join(f"{count} {reason}" for reason, count in left.most_common())
        table.add_row(Text(f"+ {left.total()}"), *[Text("")] * (len(COLUMNS) - 1), Text(f"more: {counts}", "dim"))
    return table


def _reason(reason: str) -> Text:
    return Text(printable(reason), STYLES.get(reason, WAITING))


# ---- uids ------------------------------------------------------------------------------------------------------------


def uid_table(subnet: Subnet, names: Mapping[str, str], rows_max: int) -> RenderableType:
    """What the chain holds of each uid; emissions are of its last chain epoch. Who has least is left out first."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
    for name, width in UID_COLUMNS:
        left = name == "on chain"
        table.add_column(name, width=width, no_wrap=True, overflow="ellipsis", justify="left" if left else "right")

    def telling(neuron: Neuron) -> tuple[float, float, int]:
        return -subnet.pay.get(neuron.uid, NOTHING).emission_alpha, -neuron.stake, neuron.uid

    neurons = sorted(subnet.neurons, key=telling)
    for neuron in sorted(neurons[:rows_max], key=lambda neuron: neuron.uid):
        pay = subnet.pay.get(neuron.uid, NOTHING)
        figures = f"{neuron.stake:,.1f}", f"{pay.incentive:.1%}", f"{pay.dividends:.1%}", f"{pay.emission_alpha:.3f}"
        table.add_row(Text(name_of(names, neuron.hotkey)), Text(str(neuron.uid)), *map(Text, figures))
    if (left_out := len(neurons) - rows_max) > 0:
        table.add_row(Text(f"+ {left_out}"), *[Text("")] * (len(UID_COLUMNS) - 1))
    return table


# ---- why -------------------------------------------------------------------------------------------------------------


class Why(NamedTuple):
    """A state that somebody may wonder about."""

    rank: int
    what: str
    reason: str
    sentence: str
    remedy: str


def _reasons(status: Status, names: Mapping[str, str], count_max: int) -> Iterator[Text]:
    """Equal ones together, with the names of all they concern; who was removed first, who only waits last."""
    found: defaultdict[Why, list[str]] = defaultdict(list)
    for state, name in _wonders(status, names):
        found[state].append(name)
    ranked = sorted(found.items(), key=lambda item: item[0].rank)
    for state, who in ranked[:count_max]:
        more = f" and {len(who) - NAMES_MAX} more" if len(who) > NAMES_MAX else ""
        text = _line("why", f"{', '.join(who[:NAMES_MAX])}{more} {state.what}: ")
        text.append_text(_reason(state.reason)).append(f": {cut(state.sentence)}" if state.sentence else "")
        yield text.append(f" → {cut(state.remedy or remedy_of(state.reason))}", "italic")
    if len(ranked) > count_max:
        yield _line("", f"and {len(ranked) - count_max} more")


def _wonders(status: Status, names: Mapping[str, str]) -> Iterator[tuple[Why, str]]:
    for stage in status.stages:
        if stage.reason not in ("", Reason.OK):
            remedy = remedy_of(stage.reason)
            yield Why(4, "waiting", stage.reason, stage.sentence, remedy), f"stage {stage.stage}"
        for replica in stage.replicas:
            state = replica.reason, replica.sentence, replica.remedy
            if not replica.live:
                yield Why(0, "removed", *state), name_of(names, replica.hotkey)
            elif replica.reason not in ("", Reason.BUSY, Reason.OK):
                yield Why(4, "waiting", *state), name_of(names, replica.hotkey)
    for hotkey, slip in status.pay.scores.items():
        if slip.reason not in ("", Reason.PAID):
            rank = 1 if STYLES.get(slip.reason) == BAD else 3
            yield Why(rank, "unpaid", slip.reason, slip.sentence, slip.remedy), name_of(names, hotkey)
    for outcome, count in status.outcomes.items():
        fate, _, reason = outcome.partition("/")
        if fate != "applied":
            yield Why(5, fate, reason, "", ""), _times(count, "result")
    for reason, count in status.refusals.items():
        yield Why(2, "refused at the door", reason, "", ""), _times(count, "request")


def _times(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def _incidents(status: Status, names: Mapping[str, str]) -> Iterable[Text]:
    """The latest first, a line each."""
    count = max(status.incident_count, len(status.incidents))
    for number, incident in enumerate(list(reversed(status.incidents))[:INCIDENTS]):
        who = f"{name_of(names, incident.hotkey)}: " if incident.hotkey else ""
        said = f"{max(0.0, status.at - incident.at):.0f} s ago, {who}{incident.reason}: {incident.sentence}"
        text = _line("" if number else "events", said if number else f"{_times(count, 'incident')}; {said}", "dim")
        text.no_wrap, text.overflow = True, "ellipsis"
        yield text


def _line(head: str, text: str, style: str = "") -> Text:
    return Text().append(f"{head:<8}", "bold cyan").append(printable(text), style or None)

"""What `python -m subnet.calibrate` prints. Law: pure; the same report gives the same text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from subnet.simulation.calibration import Caught, Report
from subnet.simulation.calibration_figures import FIGURES, Row, joined

ACCUSATIONS_SHOWN = 20

_HEADS = {
    "quantiser_steps": "steps",
    "cosine_min": "1 - cos min",
    "cosine_p01": "1 - cos 1%",
    "relative_l2": "rel. L2",
    "loss": "loss",
    "state": "state",
}


def text(report: Report) -> str:
    """The whole answer."""
    first, last = report.losses
    parts = [
        f"Honest audits, preset {report.preset}: {report.segments:,} segments, {report.audits:,} audits; the first "
        f"swarm's loss went from {first:.2f} to {last:.2f} nats",
        _thread_sentence(report),
        _table(["values", "miner", "auditor", "stage", "audits", "equal", *_HEADS.values(), "margin", "accused"],
               [_cells(row) for row in _short(report.rows)]),
        "State distance in other arithmetic, by what the segment began and ended with",
        _table(["segment", "audits", "median", "99 %", "worst"],
               [[x.span, str(x.audits), *(f"{y:.1e}" for y in (x.median, x.p99, x.worst))] for x in report.spreads]),
        f"Tolerances: the RunSpec's defaults, and worst honest figure x {report.safety:g}",
        _table(["tolerance", "default", "recommended"],
               [[name, f"{getattr(report.tolerances, name):g}", f"{getattr(report.recommended, name):g}"]
                for name in FIGURES]),
    ]  # fmt: skip
    if report.cheats:
        parts += [
            "Cheats caught, given an audit that holds the cheated item: by default → by recommended tolerances",
            _cheat_table(report.cheats),
        ]
    parts += [f"  accused: {said}" for said in report.accusations[:ACCUSATIONS_SHOWN]]
    parts.append(
        f"{report.segments} honest segments, {len(report.accusations)} false accusations "
        f"({report.audits} audits, {report.took_s:.0f} s)"
    )
    return "\n\n".join(parts) + "\n"


def _thread_sentence(report: Report) -> str:
    said = {True: "changes", False: "does not change"}
    return (
        f"torch's thread count {said[report.threads_change_sums]} a sum of a million values on this machine and "
        f"{said[report.threads_change_products]} a product over 4,096; equal: every figure perfect"
    )


def _short(found: Sequence[Row]) -> list[Row]:
    """Sorted. Thread pairs without any difference share a line; so do, in other arithmetic, all miners' threads."""
    order = ["int8", "bf16", "fp32", "first", "middle", "last"]

    def place(row: Row) -> tuple[object, ...]:
        values, miner, auditor, stage = row.group
        return order.index(values), auditor, order.index(stage), miner

    def same_pair(row: Row) -> tuple[object, ...]:
        return row.group[:1] if row.bit_equal == row.segments else row.group

    threads = [row for row in found if row.group[2].startswith("threads")]
    others = [row for row in found if not row.group[2].startswith("threads")]
    pairs = joined(sorted(threads, key=place), same_pair)
    return pairs + joined(sorted(others, key=place), lambda row: (row.group[0], *row.group[2:]))


def _cells(row: Row) -> list[str]:
    figures = [f"{row.worst[name]:.1e}" if row.worst.get(name) else "-" for name in _HEADS]
    if row.worst.get("quantiser_steps"):
        figures[0] = f"{row.worst['quantiser_steps']:.3f}"
    margin = "-" if row.margin is None else f"{row.margin:,.1f}x"
    return [*row.group, str(row.segments), str(row.bit_equal), *figures, margin, str(row.accused)]


def _cheat_table(found: Sequence[Caught]) -> str:
    values = list(dict.fromkeys(one.values for one in found))
    cells = {(one.cheat, one.amount, one.values): one for one in found}
    lines = [
        [cheat, amount, *(_share(cells[cheat, amount, value]) for value in values)]
        for cheat, amount in dict.fromkeys((one.cheat, one.amount) for one in found)
    ]
    return _table(["cheat", "amount", *(f"{value} boundaries" for value in values)], lines)


def _share(one: Caught) -> str:
    if not one.audits:
        return "-"
    return f"{one.by_default / one.audits:.0%} → {one.by_recommended / one.audits:.0%} of {one.audits}"


def _table(head: list[str], lines: Iterable[list[str]]) -> str:
    every = [head, *lines]
    widths = [max(len(line[column]) for line in every) for column in range(len(head))]
    shown = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in every]
    return "\n".join([shown[0], "-" * len(shown[0]), *shown[1:]])

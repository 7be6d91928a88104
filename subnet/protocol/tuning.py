"""What a subnet's owner may change while a run goes on, as a TOML file, and the RunSpec that follows from it.

    [merge]
    num_microbatches_min = 40        # every name is the RunSpec's own, with its unit
    quorum = 0.5
    [score]
    burn_fraction = 0.1

Law: pure. A file is read against the run's first RunSpec, so a line that is taken out again restores what the run began
with, and the same file always means the same rules. What fixes shapes, bytes or the meaning of a log (model, boundary,
data, accumulation, segments, encodings) cannot be tuned. Mistakes are a ConfigError that names section and field.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from subnet.errors import ConfigError
from subnet.protocol.run_spec import (
    AuditSpec,
    Fraction,
    InnerSpec,
    MergeSpec,
    RoutingSpec,
    RunSpec,
    ScoreSpec,
    Seconds,
    Tolerances,
)

FIELD = "--config"
_MOST = 1e9
"""Of what has no limit of its own: infinity is no number to agree on."""
Above0 = Annotated[float, Meta(gt=0, le=_MOST)]
From0 = Annotated[float, Meta(ge=0, le=_MOST)]
Factor = Annotated[float, Meta(ge=1, le=_MOST)]
Steps = Annotated[int, Meta(ge=0, le=10**9)]
Count = Annotated[int, Meta(ge=1, le=10**9)]


class Inner(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    lr_peak: Above0 | UnsetType = UNSET
    lr_final: From0 | UnsetType = UNSET
    warmup_steps: Steps | UnsetType = UNSET
    rewarm_steps: Steps | UnsetType = UNSET
    decay_steps: Count | UnsetType = UNSET
    weight_decay: From0 | UnsetType = UNSET
    clip_norm: Above0 | UnsetType = UNSET


class Merge(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    num_microbatches_min: Count | UnsetType = UNSET
    quorum: Fraction | UnsetType = UNSET
    relax_after_s: Seconds | UnsetType = UNSET
    grace_s: Seconds | UnsetType = UNSET
    upload_deadline_s: Seconds | UnsetType = UNSET
    reduce_deadline_s: Seconds | UnsetType = UNSET
    apply_deadline_s: Seconds | UnsetType = UNSET
    outer_lr: Above0 | UnsetType = UNSET
    outer_momentum: Annotated[float, Meta(ge=0, lt=1)] | UnsetType = UNSET
    clip_factor: Above0 | UnsetType = UNSET
    explosion_nats: From0 | UnsetType = UNSET


class Routing(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    in_flight_per_replica: Annotated[int, Meta(ge=1, le=64)] | UnsetType = UNSET
    dead_after_s: Seconds | UnsetType = UNSET
    rebalance_factor: Annotated[float, Meta(ge=1.25, le=100)] | UnsetType = UNSET
    rebalance_after_s: Seconds | UnsetType = UNSET
    deadline_own_factor: Factor | UnsetType = UNSET
    deadline_stage_factor: Factor | UnsetType = UNSET
    deadline_floor_s: Seconds | UnsetType = UNSET
    deadline_first_s: Seconds | UnsetType = UNSET


class AuditTolerances(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    quantiser_steps: From0 | UnsetType = UNSET
    cosine_min: Annotated[float, Meta(ge=-1, le=1)] | UnsetType = UNSET
    cosine_p01: Annotated[float, Meta(ge=-1, le=1)] | UnsetType = UNSET
    relative_l2: From0 | UnsetType = UNSET
    loss: From0 | UnsetType = UNSET
    state: From0 | UnsetType = UNSET


class Audit(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    rate: Fraction | UnsetType = UNSET
    settled_epochs: Count | UnsetType = UNSET
    reveal_deadline_s: Seconds | UnsetType = UNSET
    replay_deadline_s: Seconds | UnsetType = UNSET
    tolerances: AuditTolerances = AuditTolerances()


class Score(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    gamma_s: Above0 | UnsetType = UNSET
    burn_fraction: Fraction | UnsetType = UNSET


class Tuning(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the file names; everything else stays as the run began with it."""

    inner: Inner = Inner()
    merge: Merge = Merge()
    routing: Routing = Routing()
    audit: Audit = Audit()
    score: Score = Score()


_SECTIONS: dict[str, tuple[type[Struct], type[Struct]]] = {
    "inner": (Inner, InnerSpec),
    "merge": (Merge, MergeSpec),
    "routing": (Routing, RoutingSpec),
    "audit": (Audit, AuditSpec),
    "audit.tolerances": (AuditTolerances, Tolerances),
    "score": (Score, ScoreSpec),
}
_PATH = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`$")
_UNKNOWN = re.compile(r"unknown field `([^`]*)`")


def parse(data: bytes) -> Tuning:
    """What a TOML file says. Raises ConfigError."""
    try:
        return msgspec.toml.decode(data, type=Tuning)
    except msgspec.ValidationError as error:
        raise _mistake(str(error)) from None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ConfigError(FIELD, f"is no TOML: {error}", "write [section] lines and name = value lines") from None


def _mistake(said: str) -> ConfigError:
    found, unknown = _PATH.search(said), _UNKNOWN.search(said)
    path, sentence = found[1] if found else "", _PATH.sub("", said)
    if unknown is None:
        return ConfigError(path or FIELD, sentence, "subnet/protocol/run_spec.py says what it means")
    known = _SECTIONS[path][0].__struct_fields__ if path in _SECTIONS else Tuning.__struct_fields__
    fixed = path in _SECTIONS and unknown[1] in _SECTIONS[path][1].__struct_fields__
    problem = "is fixed for the whole run" if fixed else "is not known"
    remedy = f"these can be tuned here: {', '.join(known)}"
    return ConfigError(f"{path}.{unknown[1]}".lstrip("."), problem, remedy)


def tuned(opening: RunSpec, tuning: Tuning, version: int) -> RunSpec:
    """The run's first RunSpec with what the owner changed, as its `version`. Raises ConfigError."""
    spec = msgspec.structs.replace(opening, version=version, **_changed(opening, tuning))
    _check(opening, spec)
    return spec


def _changed(spec: Any, tuning: Struct) -> dict[str, Any]:
    """What is another value now, by field; sections are whole."""
    changes: dict[str, Any] = {}
    for name in tuning.__struct_fields__:
        value = getattr(tuning, name)
        if isinstance(value, Struct):
            before = getattr(spec, name)
            changes[name] = msgspec.structs.replace(before, **_changed(before, value))
        elif value is not UNSET:
            changes[name] = value
    return changes


def _check(opening: RunSpec, spec: RunSpec) -> None:
    """What single fields cannot know."""
    if bool(opening.audit.rate) != bool(spec.audit.rate):
        problem = f"is {opening.audit.rate:g} since the run began"
        raise ConfigError("audit.rate", problem, "audits are on or off for a whole run: stay above 0")
    if spec.inner.lr_final > spec.inner.lr_peak:
        problem = f"{spec.inner.lr_final:g} is above inner.lr_peak {spec.inner.lr_peak:g}"
        raise ConfigError("inner.lr_final", problem, "give a smaller one, or a larger lr_peak")
    if (silence := spec.routing.silence_problem) is not None:
        raise ConfigError("routing.dead_after_s", silence, "honest miners would be taken for dead: give more")


def is_tuned_from(opening: RunSpec, spec: RunSpec) -> bool:
    """Whether an owner's file can have made `spec` of the run's first RunSpec."""
    try:
        asked = msgspec.convert(_asked(opening, spec, Tuning), Tuning)
        return tuned(opening, asked, spec.version) == spec
    except (msgspec.ValidationError, ConfigError):
        return False


def _asked(before: Any, after: Any, kind: type[Struct]) -> dict[str, Any]:
    """What a file would have to say: every tunable value that is another one."""
    asked: dict[str, Any] = {}
    for field in kind.__struct_fields__:
        old, new = getattr(before, field), getattr(after, field)
        if isinstance(old, Struct):
            nested = AuditTolerances if field == "tolerances" else _SECTIONS[field][0]
            asked[field] = _asked(old, new, nested)
        elif old != new:
            asked[field] = new
    return asked


def differences(before: RunSpec, after: RunSpec) -> list[str]:
    """One phrase for each changed value: 'merge.quorum 0.75 → 0.5'."""
    found = []
    for path, (kind, _) in _SECTIONS.items():
        old, new = before, after
        for name in path.split("."):
            old, new = getattr(old, name), getattr(new, name)
        found += [
            f"{path}.{field} {getattr(old, field):g} → {getattr(new, field):g}"
            for field in kind.__struct_fields__
            if field != "tolerances" and getattr(old, field) != getattr(new, field)
        ]
    return found

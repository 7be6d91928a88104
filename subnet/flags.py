"""From the fields of a config to command-line flags, --help and one-line mistakes.

Law: a field is the only source of its flag, its sentence and its limits. Every mistake is a ConfigError that names the
flag, or the variable that stands in for it, and says what to write instead; nothing here prints, or reads the
environment (`config` passes it in). What a field's `extra` may say: env, its variable; choices; metavar; secret, its
value is never shown; repeatable, the flag may be given several times and its values are joined by commas; hidden, it is
not in --help; alone, beside its flag no variable counts.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn, get_type_hints

import msgspec
from msgspec import Meta, Struct

from subnet.errors import ConfigError

_UNTOLD = (msgspec.NODEFAULT, "", 0, 0.0, -1.0)
"""Defaults that stand for "not given": the sentence says what happens then."""


class Setting(NamedTuple):
    """What a field says about itself."""

    hint: Any
    """Its annotated type."""
    meta: Meta
    extra: Mapping[str, Any]


def settings(config: type[Struct]) -> dict[str, Setting]:
    """By field name."""
    found = {}
    for name, hint in get_type_hints(config, include_extras=True).items():
        meta = next(part for part in hint.__metadata__ if isinstance(part, Meta))
        found[name] = Setting(hint, meta, meta.extra or {})
    return found


def flag(name: str) -> str:
    """The flag of a field: durations drop their unit, since their values carry one (20s)."""
    return "--" + name.removesuffix("_s").replace("_", "-")


def given(config: type[Struct], argv: list[str], prog: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """What the command line names, and for other fields the environment, checked field by field. Raises ConfigError."""
    written, fields = read(config, argv, prog), settings(config)
    values = {name: checked(name, fields[name], value) for name, value in written.items()}
    if not any(fields[name].extra.get("alone") for name in written):
        for name, one in fields.items():
            variable = one.extra.get("env", "")
            if name not in written and (value := environment.get(variable)):
                values[name] = checked(name, one, value, variable)
    return values


def read(config: type[Struct], argv: list[str], prog: str) -> dict[str, Any]:
    """What the command line names, by field, still as it was written. Raises ConfigError; --help ends the process."""
    parser = _Parser(prog=prog, description=config.__doc__, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    defaults = {field.name: field.default for field in msgspec.structs.fields(config)}
    for name, one in settings(config).items():
        _add_flag(parser, name, one, defaults[name])
    values = vars(parser.parse_args(argv))
    return {name: ",".join(value) if isinstance(value, list) else value for name, value in values.items()}


class _Parser(argparse.ArgumentParser):
    """argparse, except that a mistake is a ConfigError instead of a usage page."""

    def error(self, message: str) -> NoReturn:
        named = re.match(r"argument (--[a-z-]+): (.*)", message)
        field, problem = (named[1], named[2]) if named else ("command line", message)
        raise ConfigError(field, problem, "see --help")


def _add_flag(parser: argparse.ArgumentParser, name: str, one: Setting, default: Any) -> None:
    sentence = (one.meta.description or "").replace("%", "%%")
    facts = []
    if not isinstance(default, bool) and default not in _UNTOLD:
        facts.append(f"default: {default:g}s" if name.endswith("_s") else f"default: {default}")
    if default is msgspec.NODEFAULT:
        facts.append("required")
    if variable := one.extra.get("env"):
        facts.append(f"or {variable}")
    if facts:
        sentence += f" ({'; '.join(facts)})"
    shown = argparse.SUPPRESS if one.extra.get("hidden") else sentence
    if one.hint.__origin__ is bool:
        parser.add_argument(flag(name), dest=name, action="store_true", help=shown)
        return
    kind = "DURATION" if name.endswith("_s") else "N" if one.hint.__origin__ is int else "TEXT"
    metavar = one.extra.get("metavar") or "|".join(one.extra.get("choices", ())) or kind
    action = "append" if one.extra.get("repeatable") else "store"
    parser.add_argument(flag(name), dest=name, metavar=metavar, help=shown, action=action)


def checked(name: str, one: Setting, value: Any, variable: str = "") -> Any:
    """A field's value from what was written, there or in a variable of the environment. Raises ConfigError."""
    hint, meta, extra = one
    named = flag(name) + (f" ({variable})" if variable else "")
    shown = "the value given" if extra.get("secret") else repr(value)
    if name.endswith("_s"):
        value = _duration_s(named, value)
    choices = extra.get("choices")
    if choices and value not in choices:
        raise ConfigError(named, f"{shown} is not known", f"choose one of {', '.join(choices)}")
    try:
        return msgspec.convert(value, hint, strict=False)
    except msgspec.ValidationError:
        raise ConfigError(named, f"{shown} does not fit", f"write {_expected(hint, meta)}") from None


def _expected(hint: Any, meta: Meta) -> str:
    if hint.__origin__ is str:
        return f"the {meta.description}"
    number = "a whole number" if hint.__origin__ is int else "a number"
    least = f" above {meta.gt:g}, up" if meta.gt is not None else f" from {meta.ge}"
    limits = least.removesuffix(", up") if meta.le is None else f"{least} to {meta.le}"
    return f"{number}{limits} ({meta.description})"


_UNITS_S = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def _duration_s(field: str, text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|)", text.strip())
    if match is None:
        raise ConfigError(field, f"{text!r} is no duration", "write a number with a unit: 500ms, 20s, 5m or 1h")
    return float(match[1]) * _UNITS_S[match[2]]

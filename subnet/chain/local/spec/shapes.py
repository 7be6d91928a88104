"""The vocabulary in which the local chain's interface is declared.

Law: declarations only, nothing about bytes on a wire except a default value's. A type is an expression such as
`Vec<(AccountId,u16)>` over primitives and the names declared in `spec.types`; fields are written `name:type`, separated
by spaces. `_:type` is a field without a name.
"""

from __future__ import annotations

from typing import NamedTuple


class Field(NamedTuple):
    name: str | None
    type: str


class Variant(NamedTuple):
    name: str
    number: int
    fields: tuple[Field, ...]


class Struct(NamedTuple):
    """A composite; one field without a name makes a newtype."""

    path: str
    fields: tuple[Field, ...]


class Enum(NamedTuple):
    path: str
    variants: tuple[Variant, ...]


Shape = Struct | Enum


class Item(NamedTuple):
    """One storage value, or a map when it has keys."""

    name: str
    keys: tuple[tuple[str, str], ...]
    """(hasher, type) each."""
    value: str
    default: bytes | None
    """SCALE bytes of the value that an absent key stands for; None where absent means absent."""


class Call(NamedTuple):
    name: str
    number: int
    args: tuple[Field, ...]


class Event(NamedTuple):
    name: str
    number: int
    fields: tuple[Field, ...]


class Constant(NamedTuple):
    name: str
    type: str
    value: bytes


class Pallet(NamedTuple):
    name: str
    number: int
    items: tuple[Item, ...] = ()
    calls: tuple[Call, ...] = ()
    events: tuple[Event, ...] = ()
    errors: tuple[str, ...] = ()
    constants: tuple[Constant, ...] = ()


class Method(NamedTuple):
    """One method of a runtime API."""

    name: str
    inputs: tuple[Field, ...]
    output: str


class Api(NamedTuple):
    name: str
    methods: tuple[Method, ...]


def fields(text: str) -> tuple[Field, ...]:
    """`hotkey:AccountId netuid:NetUid` → two fields."""
    found = []
    for word in text.split():
        name, _, type_ = word.partition(":")
        found.append(Field(None if name == "_" else name, type_))
    return tuple(found)


def struct(path: str, text: str) -> Struct:
    return Struct(path, fields(text))


def newtype(path: str, inner: str) -> Struct:
    return Struct(path, (Field(None, inner),))


def enum(path: str, *variants: str) -> Enum:
    """Each variant is `Name` or `Name field:type ...`; its number is its position."""
    parsed = []
    for index, text in enumerate(variants):
        name, _, rest = text.partition(" ")
        parsed.append(Variant(name, index, fields(rest)))
    return Enum(path, tuple(parsed))


def little_endian(value: int, width_bytes: int) -> bytes:
    return value.to_bytes(width_bytes, "little", signed=value < 0)


WIDTH_BYTES = {"bool": 1, "u8": 1, "MechId": 1, "u16": 2, "i16": 2, "PerU16": 2, "u32": 4, "u64": 8, "i64": 8}
WIDTH_BYTES |= {"TaoBalance": 8, "AlphaBalance": 8, "u128": 16, "i128": 16, "U64F64": 16, "I96F32": 16, "I64F64": 16}
WIDTH_BYTES |= {"AccountId": 32, "H256": 32}


def default_of(type_: str, value: int | bytes | None) -> bytes | None:
    """SCALE bytes of a default: given ones, none for an optional, empty for a list, else a number of its width."""
    if value is None or isinstance(value, bytes):
        return value
    return b"\0" if type_.startswith("Vec<") else little_endian(value, WIDTH_BYTES[type_])


def item(name: str, value: str, keys: str = "", default: int | bytes | None = 0) -> Item:
    """`keys` are `Hasher:type` words."""
    pairs = tuple((hasher, type_) for hasher, _, type_ in (word.partition(":") for word in keys.split()))
    return Item(name, pairs, value, default_of(value, default))


def optional(name: str, value: str, keys: str = "") -> Item:
    return item(name, value, keys, None)

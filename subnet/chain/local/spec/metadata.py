"""Runtime metadata V15, written from our own declarations.

Law: nothing here is read from a real chain. `build` turns pallets and APIs into the `MetadataVersioned` bytes that any
Substrate client decodes (https://docs.rs/frame-metadata, `v15`); the same input gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from subnet.chain.local.spec.shapes import Api, Enum, Field, Item, Pallet, Shape, Struct, Variant

MAGIC, VERSION = b"meta", 15
PRIMITIVES = "bool char str u8 u16 u32 u64 u128 u256 i8 i16 i32 i64 i128 i256".split()
HASHERS = "Blake2_128 Blake2_256 Blake2_128Concat Twox128 Twox256 Twox64Concat Identity".split()
RUNTIME = "node_subtensor_runtime"
EXTRINSIC_VERSION = 4


def compact(number: int) -> bytes:
    """SCALE's compact integer: two low bits tell the width."""
    if number < 1 << 6:
        return bytes([number << 2])
    if number < 1 << 14:
        return (number << 2 | 1).to_bytes(2, "little")
    if number < 1 << 30:
        return (number << 2 | 2).to_bytes(4, "little")
    data = number.to_bytes((number.bit_length() + 7) // 8, "little")
    return bytes([(len(data) - 4) << 2 | 3]) + data


def blob(data: bytes) -> bytes:
    """Vec<u8>."""
    return compact(len(data)) + data


def _text(text: str) -> bytes:
    return blob(text.encode())


def _vec(parts: Iterable[bytes]) -> bytes:
    listed = list(parts)
    return compact(len(listed)) + b"".join(listed)


def _option(data: bytes | None) -> bytes:
    return b"\0" if data is None else b"\1" + data


def split_top(text: str) -> list[str]:
    """`u16,Vec<(u8,u8)>` → its parts at the outermost commas."""
    parts, depth, start = [], 0, 0
    for at, letter in enumerate(text):
        if letter in "<([":
            depth += 1
        elif letter in ">)]":
            depth -= 1
        elif letter == "," and not depth:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]] if text else []


class Registry:
    """The portable type registry: every type expression gets one number."""

    def __init__(self, named: Mapping[str, Shape]) -> None:
        self._named = named
        self._ids: dict[str, int] = {}
        self._entries: list[bytes] = []

    def id(self, type_: str) -> bytes:
        """The compact number of a type, which is registered at its first mention."""
        if type_ not in self._ids:
            number = self._ids[type_] = len(self._entries)
            self._entries.append(b"")  # reserved: a type may mention itself
            path, parameters, body = self._describe(type_)
            entry = compact(number) + _vec(_text(part) for part in path)
            self._entries[number] = entry + _vec(parameters) + body + _vec([])
        return compact(self._ids[type_])

    def encode(self) -> bytes:
        return _vec(self._entries)

    def _describe(self, type_: str) -> tuple[Sequence[str], list[bytes], bytes]:
        """(path, type parameters, definition); a definition's first byte is its kind."""
        if type_ in PRIMITIVES:
            return (), [], bytes([5, PRIMITIVES.index(type_)])
        if type_.startswith("Vec<"):
            return (), [], b"\2" + self.id(type_[4:-1])
        if type_.startswith("Compact<"):
            return (), [], b"\6" + self.id(type_[8:-1])
        if type_.startswith("Option<"):
            inner = type_[7:-1]
            parameter = _text("T") + _option(self.id(inner))
            some = Variant("Some", 1, (Field(None, inner),))
            return ("Option",), [parameter], self._variants((Variant("None", 0, ()), some))
        if type_.startswith("["):
            element, _, length = type_[1:-1].rpartition(";")
            return (), [], b"\3" + int(length).to_bytes(4, "little") + self.id(element)
        if type_.startswith("("):
            return (), [], b"\4" + _vec(self.id(part) for part in split_top(type_[1:-1]))
        shape = self._named[type_]
        path = shape.path.split("::")
        if isinstance(shape, Struct):
            return path, [], b"\0" + _vec(self._field(field) for field in shape.fields)
        return path, [], self._variants(shape.variants)

    def _variants(self, variants: Iterable[Variant]) -> bytes:
        def one(variant: Variant) -> bytes:
            members = _vec(self._field(field) for field in variant.fields)
            return _text(variant.name) + members + bytes([variant.number]) + _vec([])

        return b"\1" + _vec(one(variant) for variant in variants)

    def _field(self, field: Field) -> bytes:
        name = None if field.name is None else _text(field.name)
        return _option(name) + self.id(field.type) + _option(_text(field.type)) + _vec([])


def build(
    types: Mapping[str, Shape],
    pallets: Sequence[Pallet],
    apis: Sequence[Api],
    extensions: Sequence[tuple[str, str, str]],
) -> bytes:
    """Metadata bytes. `extensions` are the signed extensions: name, type in the extrinsic, type only signed."""
    named = dict(types) | _pallet_enums(pallets)
    registry = Registry(named)
    body = _vec(_pallet(registry, pallet, named) for pallet in pallets)
    body += bytes([EXTRINSIC_VERSION])
    body += b"".join(registry.id(part) for part in ("MultiAddress", "RuntimeCall", "MultiSignature", "()"))
    body += _vec(_text(name) + registry.id(inside) + registry.id(signed) for name, inside, signed in extensions)
    body += registry.id("()")  # the runtime's own type
    body += _vec(_api(registry, api) for api in apis)
    body += b"".join(registry.id(part) for part in ("RuntimeCall", "RuntimeEvent", "RuntimeError"))
    body += _vec([])  # custom entries
    return MAGIC + bytes([VERSION]) + registry.encode() + body


def _pallet_enums(pallets: Sequence[Pallet]) -> dict[str, Shape]:
    """Call, Event and Error of each pallet, and the three enums over all pallets."""
    named: dict[str, Shape] = {}
    for pallet in pallets:
        path = f"pallet_{pallet.name.lower()}::pallet"
        if pallet.calls:
            calls = tuple(Variant(call.name, call.number, call.args) for call in pallet.calls)
            named[f"{pallet.name}Call"] = Enum(f"{path}::Call", calls)
        if pallet.events:
            events = tuple(Variant(event.name, event.number, event.fields) for event in pallet.events)
            named[f"{pallet.name}Event"] = Enum(f"{path}::Event", events)
        if pallet.errors:
            errors = tuple(Variant(name, index, ()) for index, name in enumerate(pallet.errors))
            named[f"{pallet.name}Error"] = Enum(f"{path}::Error", errors)
    for kind in ("Call", "Event", "Error"):
        variants = tuple(
            Variant(pallet.name, pallet.number, (Field(None, pallet.name + kind),))
            for pallet in pallets
            if pallet.name + kind in named
        )
        named[f"Runtime{kind}"] = Enum(f"{RUNTIME}::Runtime{kind}", variants)
    return named


def _pallet(registry: Registry, pallet: Pallet, named: Mapping[str, Shape]) -> bytes:
    def enum_id(kind: str) -> bytes:
        return _option(registry.id(pallet.name + kind) if pallet.name + kind in named else None)

    items = _vec(_item(registry, one) for one in pallet.items)
    constants = _vec(_text(c.name) + registry.id(c.type) + blob(c.value) + _vec([]) for c in pallet.constants)
    storage = _option(_text(pallet.name) + items if pallet.items else None)
    parts = (enum_id("Call"), enum_id("Event"), constants, enum_id("Error"), bytes([pallet.number]), _vec([]))
    return _text(pallet.name) + storage + b"".join(parts)


def _item(registry: Registry, one: Item) -> bytes:
    if one.keys:
        hashers = _vec(bytes([HASHERS.index(hasher)]) for hasher, _ in one.keys)
        types = [type_ for _, type_ in one.keys]
        key = types[0] if len(types) == 1 else f"({','.join(types)})"
        entry = b"\1" + hashers + registry.id(key) + registry.id(one.value)
    else:
        entry = b"\0" + registry.id(one.value)
    modifier = b"\0" if one.default is None else b"\1"
    return _text(one.name) + modifier + entry + blob(b"\0" if one.default is None else one.default) + _vec([])


def _api(registry: Registry, api: Api) -> bytes:
    methods = _vec(
        _text(method.name)
        + _vec(_text(field.name or "") + registry.id(field.type) for field in method.inputs)
        + registry.id(method.output)
        + _vec([])
        for method in api.methods
    )
    return _text(api.name) + methods + _vec([])

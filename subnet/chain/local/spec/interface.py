"""The whole interface in one object: its metadata, and the SCALE codec that reads and writes by it.

Law: the one place that calls `bittensor_core` for encoding. Values go in and out as plain Python: accounts as ss58
text, bytes as 0x-hex, enums as {variant: value}.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import bittensor_core as core  # type: ignore[import-untyped]

from subnet.chain.local.spec import metadata
from subnet.chain.local.spec.apis import APIS
from subnet.chain.local.spec.info_types import INFO_TYPES
from subnet.chain.local.spec.pallets import SIGNED_EXTENSIONS, SPEC_VERSION, SS58_FORMAT, TRANSACTION_VERSION, pallets
from subnet.chain.local.spec.types import TYPES


class ItemCodec(NamedTuple):
    """How one storage item is written."""

    value_type: str
    default: bytes | None
    num_keys: int


class ModuleError(NamedTuple):
    pallet_index: int
    error_index: int


def octets(value: Any) -> bytes:
    """A Vec<u8> as the codec gives it: 0x-hex, or text where the bytes happen to be text."""
    if isinstance(value, str):
        return bytes.fromhex(value[2:]) if value.startswith("0x") else value.encode()
    return bytes(value)


class Interface:
    def __init__(self, block_ms: int) -> None:
        listed = pallets(block_ms)
        self.metadata = metadata.build(TYPES | INFO_TYPES, listed, APIS, SIGNED_EXTENSIONS)
        self._runtime = core.Runtime(self.metadata, SPEC_VERSION, TRANSACTION_VERSION, SS58_FORMAT)
        self._items: dict[tuple[str, str], ItemCodec] = {}
        for pallet in listed:
            for item in pallet.items:
                entry = self._runtime.storage_entry(pallet.name, item.name)
                self._items[pallet.name, item.name] = ItemCodec(entry.value_type, item.default, len(item.keys))
        self._errors = {
            (pallet.name, name): ModuleError(pallet.number, index)
            for pallet in listed
            for index, name in enumerate(pallet.errors)
        }
        self._apis = self._runtime.runtime_api_map()

    # ---- storage

    def item(self, pallet: str, name: str) -> ItemCodec:
        return self._items[pallet, name]

    def storage_key(self, pallet: str, name: str, params: Sequence[Any]) -> bytes:
        """A whole key, or a prefix when some of the last parameters are left out."""
        return bytes(self._runtime.storage_key(pallet, name, list(params)))

    def key_params(self, pallet: str, name: str, key: bytes, skip: int) -> list[Any]:
        """The parameters that a key holds, without the first `skip`."""
        return list(self._runtime.decode_storage_key_params(pallet, name, key, skip))

    def encode(self, type_: str, value: Any) -> bytes:
        return bytes(self._runtime.encode(type_, value))

    def decode(self, type_: str, data: bytes) -> Any:
        """The value of a type that takes all of `data`."""
        return self._runtime.decode(type_, data, True)

    # ---- extrinsics

    def decode_extrinsic(self, data: bytes) -> dict[str, Any]:
        found: dict[str, Any] = self._runtime.decode_extrinsic(data, True)
        return found

    def signature_payload(self, call: bytes, **parts: Any) -> bytes:
        return bytes(self._runtime.signature_payload(call, **parts))

    def signed_extra(self, **parts: Any) -> bytes:
        """The bytes of the signed extensions inside an extrinsic."""
        extra, _ = self._runtime.signature_payload_parts(**parts)
        return bytes(extra)

    def compose_call(self, pallet: str, name: str, args: dict[str, Any]) -> bytes:
        return bytes(self._runtime.compose_call(pallet, name, args))

    def module_error(self, pallet: str, name: str) -> ModuleError:
        return self._errors[pallet, name]

    # ---- runtime APIs

    def decode_inputs(self, api: str, method: str, data: bytes) -> list[Any]:
        """A call's arguments, one after the other. Raises KeyError for an unknown method, ValueError for bad bytes."""
        values = []
        for _, type_ in self._apis[api][method]["inputs"]:
            value = self._runtime.decode(type_, data, False)
            values.append(value)
            data = data[len(self.encode(type_, value)) :]
        return values

    def encode_output(self, api: str, method: str, value: Any) -> bytes:
        return self.encode(self._apis[api][method]["output"], value)

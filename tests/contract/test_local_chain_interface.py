"""The local chain's interface against the public runtime's, item by item.

tests/golden/subtensor_interface.json holds the shapes of the items below as the runtime of spec 461 declares them. It
is made from the metadata in bittensor's source distribution (Apache-2.0; tests/fixtures/golden.json there):

    python tests/contract/test_local_chain_interface.py golden.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import bittensor_core as core
import pytest

from subnet.chain.local.spec import pallets as listing
from subnet.chain.local.spec.apis import APIS
from subnet.chain.local.spec.interface import Interface

GOLDEN = Path(__file__).parents[1] / "golden" / "subtensor_interface.json"
BLOCK_MS = 250
TRANSPARENT = {"BoundedVec", "WeakBoundedVec", "BoundedBTreeMap", "Cow"}
"""Names that change neither bytes nor decoded values."""
OPEN_ENUMS = {"RuntimeCall", "RuntimeEvent", "DispatchError", "HyperparamValue"}
"""Enums of which the local chain may hold fewer variants."""

NEWER = "newer than spec 461: bittensor 11.3 reads and writes it on today's runtimes"
DIFFERENT = {
    "storage SubtensorModule.SubnetEpochConsensus": NEWER,
    "call AdminUtils.sudo_set_epoch_consensus": NEWER,
}
"""What differs, with the reason. Everything else must conform."""


class Shaper:
    """Types of one runtime as text: equal text, equal bytes and equal decoded values."""

    def __init__(self, runtime: Any) -> None:
        self._types = {entry["id"]: entry["type"] for entry in json.loads(runtime.registry_json())["types"]}

    def by_path(self, path: str) -> Any:
        return next(type_ for type_ in self._types.values() if "::".join(type_.get("path", [])) == path)

    def text(self, reference: str | int, inside: tuple[int, ...] = ()) -> str:
        if isinstance(reference, str):
            if "::" not in reference:
                return reference
            reference = int(reference.split("::")[1])
        if reference in inside:
            return "itself"
        type_ = self._types[reference]
        name = (type_.get("path") or [""])[-1]
        kind, body = next(iter(type_["def"].items()))
        inside = (*inside, reference)
        if kind == "primitive":
            return str(body)
        if kind in ("compact", "sequence"):
            return f"{kind}<{self.text(body['type'], inside)}>"
        if kind == "array":
            return f"[{self.text(body['type'], inside)};{body['len']}]"
        if kind == "tuple":
            return "(" + ",".join(self.text(part, inside) for part in body) + ")"
        if name in OPEN_ENUMS:
            return name
        if kind == "composite":
            return self._composite(name, body.get("fields", []), inside)
        variants = sorted(body.get("variants", []), key=lambda variant: int(variant["index"]))
        return name + "[" + "|".join(self.variant(variant, inside) for variant in variants) + "]"

    def variant(self, variant: dict[str, Any], inside: tuple[int, ...] = ()) -> str:
        return f"{variant['index']}:{variant['name']}" + self.fields(variant, inside)

    def fields(self, holder: dict[str, Any], inside: tuple[int, ...] = ()) -> str:
        parts = (f"{one.get('name') or ''}:{self.text(one['type'], inside)}" for one in holder.get("fields", []))
        return "(" + ",".join(parts) + ")"

    def _composite(self, name: str, fields: list[dict[str, Any]], inside: tuple[int, ...]) -> str:
        if len(fields) == 1 and not fields[0].get("name"):
            inner = self.text(fields[0]["type"], inside)
            return inner if name in TRANSPARENT else f"{name}={inner}"
        return name + self.fields({"fields": fields}, inside)


def shapes(runtime: Any, wanted: set[str]) -> dict[str, str]:
    """Of the wanted items that a runtime has, by a name such as `storage System.Account`."""
    shaper = Shaper(runtime)
    found = dict(_members(runtime, shaper))
    found |= dict(_api_methods(runtime, shaper))
    for pallet in runtime.metadata_ir()["pallets"]:
        for item in pallet["storage"]:
            entry = runtime.storage_entry(pallet["name"], item["name"])
            keys = " ".join(
                f"{hasher}:{shaper.text(type_)}"
                for hasher, type_ in zip(entry.param_hashers, entry.param_types, strict=True)
            )
            value, default = shaper.text(entry.value_type), bytes(entry.default_bytes).hex()
            found[f"storage {pallet['name']}.{item['name']}"] = f"{keys} -> {value} {entry.modifier} {default}"
    return {name: shape for name, shape in found.items() if name in wanted}


def _members(runtime: Any, shaper: Shaper) -> Iterator[tuple[str, str]]:
    """Calls, events and errors: their enums, one variant each. Numbers may differ, clients go by names."""
    for kind in ("Call", "Event", "Error"):
        outer = shaper.by_path(f"node_subtensor_runtime::Runtime{kind}")
        for pallet in outer["def"]["variant"]["variants"]:
            inner = shaper._types[pallet["fields"][0]["type"]]["def"]["variant"]
            for variant in inner.get("variants", []):
                yield f"{kind.lower()} {pallet['name']}.{variant['name']}", shaper.fields(variant)


def _api_methods(runtime: Any, shaper: Shaper) -> Iterator[tuple[str, str]]:
    for api, methods in runtime.runtime_api_map().items():
        for method, described in methods.items():
            inputs = ",".join(shaper.text(type_) for _, type_ in described["inputs"])
            yield f"api {api}.{method}", f"({inputs}) -> {shaper.text(described['output'])}"


def declared() -> set[str]:
    """Names of all that the local chain declares."""
    names = {f"api {api.name}.{method.name}" for api in APIS for method in api.methods}
    for pallet in listing.pallets(BLOCK_MS):
        names |= {f"storage {pallet.name}.{item.name}" for item in pallet.items}
        names |= {f"call {pallet.name}.{call.name}" for call in pallet.calls}
        names |= {f"event {pallet.name}.{event.name}" for event in pallet.events}
        names |= {f"error {pallet.name}.{error}" for error in pallet.errors}
    return names


class Compared(NamedTuple):
    conform: set[str]
    differ: set[str]


@pytest.fixture(scope="module")
def compared() -> Compared:
    names = declared()
    real: dict[str, str] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    mine = shapes(Interface(BLOCK_MS)._runtime, names)
    assert set(mine) == names
    conform = {name for name in names if mine[name] == real.get(name)}
    return Compared(conform, names - conform)


def test_what_differs_is_known(compared: Compared) -> None:
    """1. A field was added in a hurry: the client that reads it on finney would stumble here, and the list says so."""
    unexplained = compared.differ - set(DIFFERENT)
    assert not unexplained, "\n".join(sorted(unexplained))
    assert not set(DIFFERENT) - compared.differ, "the list names what conforms by now"


def test_most_of_it_conforms(compared: Compared) -> None:
    """2. At least 190 storage items, calls and runtime APIs are the public runtime's; so are events and errors."""
    by_kind = {kind: sum(name.startswith(kind) for name in compared.conform) for kind in ("storage", "call", "api")}
    assert sum(by_kind.values()) >= 190, by_kind
    assert sum(name.startswith(("event", "error")) for name in compared.conform) >= 90


def main(path: str) -> None:
    """Writes the golden file from a metadata fixture."""
    from bittensor._transport.codec import strip_option_opaque_metadata

    fixture = json.loads(Path(path).read_text(encoding="utf-8"))
    metadata = strip_option_opaque_metadata(bytes.fromhex(fixture["metadata"]["v15_hex"][2:]))
    real = core.Runtime(metadata, fixture["network"]["spec_version"], 1, 42)
    GOLDEN.write_text(json.dumps(shapes(real, declared()), indent=0, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])

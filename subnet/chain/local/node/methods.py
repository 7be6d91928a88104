"""The JSON-RPC methods, as a Substrate node answers them.

Law: plain functions of the chain: parameters in, JSON value out, no sockets. Hashes name blocks; state older than the
chain keeps is an error that says so. Subscriptions are the server's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from subnet.chain.local.chain import Chain
from subnet.chain.local.ledger.accounts import FEE_RAO
from subnet.chain.local.ledger.extrinsics import Refused
from subnet.chain.local.ledger.storage import Storage
from subnet.chain.local.node import answers, subnet_answers
from subnet.chain.local.spec.metadata import blob
from subnet.chain.local.spec.pallets import SPEC_NAME, SPEC_VERSION, SS58_FORMAT, TRANSACTION_VERSION
from subnet.chain.local.store import Block

UNKNOWN_BLOCK_CODE, DISCARDED_CODE, BAD_PARAMS_CODE, EXECUTION_CODE = -32000, 4003, -32602, -32603
KEYS_MAX, QUERY_KEYS_MAX = 1_000, 10_000
METADATA_VERSION = 15
WEIGHT = {"ref_time": 10**8, "proof_size": 4_000}
API_ANSWERS = answers.ANSWERS | subnet_answers.ANSWERS


class RpcError(Exception):
    def __init__(self, code: int, message: str, data: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.data = code, message, data


def octets(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


def hexed(data: bytes | None) -> str | None:
    return None if data is None else "0x" + data.hex()


# ---- blocks


def get_block_hash(chain: Chain, number: Any = None) -> Any:
    if isinstance(number, list):
        return [chain.hash_at(_number(one)) for one in number]
    return chain.head.hash if number is None else chain.hash_at(_number(number))


def _number(value: Any) -> int:
    return int(value, 16) if isinstance(value, str) else int(value)


def get_head(chain: Chain) -> str:
    return chain.head.hash


def header_of(block: Block) -> dict[str, Any]:
    return {
        "parentHash": block.parent,
        "number": hex(block.number),
        "stateRoot": block.state_root,
        "extrinsicsRoot": block.extrinsics_root,
        "digest": {"logs": list(block.logs)},
    }


def get_header(chain: Chain, hash_: str | None = None) -> Any:
    block = chain.head if hash_ is None else chain.block_by_hash(hash_)
    return None if block is None else header_of(block)


def get_block(chain: Chain, hash_: str | None = None) -> Any:
    block = chain.head if hash_ is None else chain.block_by_hash(hash_)
    if block is None:
        return None
    extrinsics = [hexed(extrinsic) for extrinsic in block.extrinsics]
    return {"block": {"header": header_of(block), "extrinsics": extrinsics}, "justifications": None}


# ---- state


def storage_at(chain: Chain, hash_: str | None) -> Storage:
    """Raises RpcError for a block that is unknown or too old."""
    if hash_ is None:
        return chain.storage.at(chain.number)
    block = chain.block_by_hash(hash_)
    if block is None:
        raise RpcError(UNKNOWN_BLOCK_CODE, f"UnknownBlock: Header was not found in the database: {hash_}")
    if block.number < chain.state.oldest:
        raise RpcError(DISCARDED_CODE, f"UnknownBlock: State already discarded for {hash_}")
    return chain.storage.at(block.number)


def get_storage(chain: Chain, key: str, hash_: str | None = None) -> Any:
    return hexed(storage_at(chain, hash_).raw(octets(key)))


def get_keys_paged(
    chain: Chain, prefix: str | None, count: int, start: str | None = None, hash_: str | None = None
) -> list[Any]:
    after = octets(start) if start else b""
    keys = [key for key in storage_at(chain, hash_).raw_keys(octets(prefix or "")) if key > after]
    return [hexed(key) for key in keys[: min(count, KEYS_MAX)]]


def query_storage_at(chain: Chain, keys: list[str], hash_: str | None = None) -> list[Any]:
    if len(keys) > QUERY_KEYS_MAX:
        raise RpcError(BAD_PARAMS_CODE, f"more than {QUERY_KEYS_MAX} keys")
    storage = storage_at(chain, hash_)
    changes = [[key, hexed(storage.raw(octets(key)))] for key in keys]
    return [{"block": hash_ or chain.head.hash, "changes": changes}]


def get_runtime_version(chain: Chain, hash_: str | None = None) -> dict[str, Any]:
    del chain, hash_
    return {
        "specName": SPEC_NAME,
        "implName": "iota-local",
        "authoringVersion": 1,
        "specVersion": SPEC_VERSION,
        "implVersion": 1,
        "apis": [],
        "transactionVersion": TRANSACTION_VERSION,
        "stateVersion": 1,
    }


def get_metadata(chain: Chain, hash_: str | None = None) -> Any:
    del hash_
    return hexed(chain.interface.metadata)


def call(chain: Chain, method: str, params: str = "0x", hash_: str | None = None) -> Any:
    """A runtime API. Raises RpcError."""
    api, _, name = method.partition("_")
    data = octets(params)
    interface = chain.interface
    if (api, name) == ("Metadata", "metadata_at_version"):
        known = int.from_bytes(data[:4], "little") == METADATA_VERSION
        return hexed(b"\1" + blob(interface.metadata) if known else b"\0")
    if (api, name) == ("Metadata", "metadata_versions"):
        return hexed(interface.encode_output(api, name, [METADATA_VERSION]))
    if (api, name) == ("TransactionPaymentApi", "query_info"):
        # the extrinsic stands there bare, not as the Vec<u8> of its type; every call costs the same, so it is not read
        info = {"weight": WEIGHT, "class": "Normal", "partial_fee": FEE_RAO}
        return hexed(interface.encode_output(api, name, info))
    storage = storage_at(chain, hash_)
    try:
        inputs = interface.decode_inputs(api, name, data)
    except KeyError:
        raise RpcError(EXECUTION_CODE, f"Execution failed: exported method {method} is not found") from None
    if (api, name) == ("AccountNonceApi", "account_nonce"):
        return hexed(interface.encode_output(api, name, chain.next_nonce(inputs[0])))
    return hexed(interface.encode_output(api, name, API_ANSWERS[api, name](storage, *inputs)))


# ---- accounts and extrinsics


def next_index(chain: Chain, who: str) -> int:
    return chain.next_nonce(who)


def submit(chain: Chain, data: str) -> str:
    """Raises RpcError."""
    try:
        return chain.submit(octets(data))
    except Refused as refused:
        raise RpcError(refused.code, refused.message, refused.sentence) from None


# ---- about the node


def system_properties(chain: Chain) -> dict[str, Any]:
    del chain
    return {"ss58Format": SS58_FORMAT, "tokenDecimals": 9, "tokenSymbol": "TAO"}


def system_health(chain: Chain) -> dict[str, Any]:
    del chain
    return {"peers": 0, "isSyncing": False, "shouldHavePeers": False}


Method = Callable[..., Any]
METHODS: dict[str, Method] = {
    "chain_getBlockHash": get_block_hash,
    "chain_getHead": get_head,
    "chain_getFinalizedHead": get_head,
    "chain_getFinalisedHead": get_head,
    "chain_getHeader": get_header,
    "chain_getBlock": get_block,
    "state_getRuntimeVersion": get_runtime_version,
    "state_getMetadata": get_metadata,
    "state_getStorage": get_storage,
    "state_getStorageAt": get_storage,
    "state_getKeysPaged": get_keys_paged,
    "state_queryStorageAt": query_storage_at,
    "state_call": call,
    "account_nextIndex": next_index,
    "system_accountNextIndex": next_index,
    "author_submitExtrinsic": submit,
    "system_chain": lambda chain: "Local",
    "system_name": lambda chain: "iota-local",
    "system_properties": system_properties,
    "system_health": system_health,
    "rpc_methods": lambda chain: {"methods": sorted(METHODS)},
}

"""Runtime APIs about subnets and their neurons: the metagraph, the hyperparameters, neuron by neuron.

Law: read only, as in `node.answers`. Fields that the local chain has no notion of are zero.
"""

from __future__ import annotations

from typing import Any

from subnet.chain.local.ledger import emission, neurons, stake
from subnet.chain.local.ledger.pool import ROOT
from subnet.chain.local.ledger.storage import Storage
from subnet.chain.local.node.answers import Answer, netuids, nothing
from subnet.chain.local.spec.hyperparameters import HYPERPARAMETERS, LISTED_TYPES
from subnet.chain.local.spec.interface import octets

NO_AXON = dict.fromkeys(("block", "version", "ip", "port", "ip_type", "protocol", "placeholder1", "placeholder2"), 0)
NO_PROMETHEUS = dict.fromkeys(("block", "version", "ip", "port", "ip_type"), 0)
PRUNING_SCORE = 65_535
"""The chain prunes by emission; the field is history."""
VECTORS = {
    "active": "Active",
    "validator_permit": "ValidatorPermit",
    "last_update": "LastUpdate",
    "emission": "Emission",
    "dividends": "Dividends",
    "incentives": "Incentive",
    "consensus": "Consensus",
}
SCALARS = {
    "network_registered_at": "NetworkRegisteredAt",
    "owner_hotkey": "SubnetOwnerHotkey",
    "owner_coldkey": "SubnetOwner",
    "tempo": "Tempo",
    "last_step": "LastMechansimStepBlock",
    "blocks_since_last_step": "BlocksSinceLastStep",
    "subnet_emission": "SubnetTaoInEmission",
    "rho": "Rho",
    "kappa": "Kappa",
    "min_allowed_weights": "MinAllowedWeights",
    "max_weights_limit": "MaxWeightsLimit",
    "weights_version": "WeightsVersionKey",
    "weights_rate_limit": "WeightsSetRateLimit",
    "max_validators": "MaxAllowedValidators",
    "num_uids": "SubnetworkN",
    "max_uids": "MaxAllowedUids",
    "burn": "Burn",
    "difficulty": "Difficulty",
    "registration_allowed": "NetworkRegistrationAllowed",
    "pow_registration_allowed": "NetworkPowRegistrationAllowed",
    "immunity_period": "ImmunityPeriod",
    "min_difficulty": "MinDifficulty",
    "max_difficulty": "MaxDifficulty",
    "min_burn": "MinBurn",
    "max_burn": "MaxBurn",
    "adjustment_alpha": "AdjustmentAlpha",
    "adjustment_interval": "AdjustmentInterval",
    "target_regs_per_interval": "TargetRegistrationsPerInterval",
    "max_regs_per_block": "MaxRegistrationsPerBlock",
    "serving_rate_limit": "ServingRateLimit",
    "commit_reveal_weights_enabled": "CommitRevealWeightsEnabled",
    "commit_reveal_period": "RevealPeriodEpochs",
    "liquid_alpha_enabled": "LiquidAlphaOn",
    "bonds_moving_avg": "BondsMovingAverage",
    "moving_price": "SubnetMovingPrice",
}
"""Metagraph field → storage item."""
POOL = {
    "alpha_in": "SubnetAlphaIn",
    "alpha_out": "SubnetAlphaOut",
    "tao_in": "SubnetTAO",
    "alpha_out_emission": "SubnetAlphaOutEmission",
    "alpha_in_emission": "SubnetAlphaInEmission",
    "tao_in_emission": "SubnetTaoInEmission",
    "subnet_volume": "SubnetVolume",
}


def metagraph(storage: Storage, netuid: int) -> dict[str, Any] | None:
    if not storage.flag("NetworksAdded", netuid):
        return None
    hotkeys = neurons.hotkeys(storage, netuid)
    low, high = storage.value("AlphaValues", netuid)
    zeros = [0] * len(hotkeys)
    dividends = [(hotkey, storage.number("AlphaDividendsPerSubnet", netuid, hotkey)) for hotkey in hotkeys]
    return {
        "netuid": netuid,
        "name": _name(storage, netuid),
        "symbol": list(octets(storage.value("TokenSymbol", netuid))),
        "identity": storage.value("SubnetIdentitiesV3", netuid),
        "block": storage.get("System", "Number"),
        "activity_cutoff": emission.activity_cutoff(storage, netuid),
        "alpha_low": low,
        "alpha_high": high,
        "identities": [storage.value("IdentitiesV2", storage.account("Owner", hotkey)) for hotkey in hotkeys],
        "axons": [storage.value("Axons", netuid, hotkey) or NO_AXON for hotkey in hotkeys],
        "tao_dividends_per_hotkey": [],
        "alpha_dividends_per_hotkey": [pair for pair in dividends if pair[1]],
        "collateral_locked": zeros,
        "collateral_min": zeros,
        "collateral_earned": zeros,
        **{field: storage.value(name, netuid) for field, name in SCALARS.items()},
        **_pool(storage, netuid),
        **_by_uid(storage, netuid, hotkeys),
    }


def subnet_state(storage: Storage, netuid: int) -> dict[str, Any] | None:
    if not storage.flag("NetworksAdded", netuid):
        return None
    hotkeys = neurons.hotkeys(storage, netuid)
    return {"netuid": netuid, "emission_history": [], **_by_uid(storage, netuid, hotkeys)}


def dynamic_info(storage: Storage, netuid: int) -> dict[str, Any] | None:
    if not storage.flag("NetworksAdded", netuid):
        return None
    fields = ("owner_hotkey", "owner_coldkey", "tempo", "last_step", "blocks_since_last_step", "network_registered_at")
    return {
        "netuid": netuid,
        "subnet_name": _name(storage, netuid),
        "token_symbol": list(octets(storage.value("TokenSymbol", netuid))),
        "emission": storage.number("SubnetTaoInEmission", netuid),
        "subnet_identity": storage.value("SubnetIdentitiesV3", netuid),
        "moving_price": storage.value("SubnetMovingPrice", netuid),
        **{field: storage.value(SCALARS[field], netuid) for field in fields},
        **_pool(storage, netuid),
    }


def hyperparameters(storage: Storage, netuid: int) -> list[dict[str, Any]] | None:
    if not storage.flag("NetworksAdded", netuid):
        return None
    rows = [
        (row.name, LISTED_TYPES[row.type], storage.value(row.storage, netuid)) for row in HYPERPARAMETERS if row.listed
    ]
    low, high = storage.value("AlphaValues", netuid)
    steepness = storage.number("AlphaSigmoidSteepness", netuid)
    rows += [
        ("activity_cutoff", "U64", emission.activity_cutoff(storage, netuid)),
        ("alpha_low", "U16", low),
        ("alpha_high", "U16", high),
        ("alpha_sigmoid_steepness", "I32F32", {"bits": steepness << 32}),
        ("yuma_version", "U16", 3 if storage.flag("Yuma3On", netuid) else 2),
        ("min_childkey_take", "U16", storage.number("MinChildkeyTakePerSubnet", netuid)),
        ("user_liquidity_enabled", "Bool", False),
    ]
    return [{"name": "0x" + name.encode().hex(), "value": {kind: value}} for name, kind, value in rows]


def neuron(storage: Storage, netuid: int, uid: int) -> dict[str, Any] | None:
    if uid >= storage.number("SubnetworkN", netuid):
        return None
    found = _neurons(storage, netuid)[uid]
    weights, bonds = storage.row("Weights", netuid, uid), storage.row("Bonds", netuid, uid)
    return found | {"weights": weights, "bonds": bonds}


def neurons_full(storage: Storage, netuid: int) -> list[dict[str, Any]]:
    return [
        found | {"weights": storage.row("Weights", netuid, uid), "bonds": storage.row("Bonds", netuid, uid)}
        for uid, found in enumerate(_neurons(storage, netuid))
    ]


def neuron_lite(storage: Storage, netuid: int, uid: int) -> dict[str, Any] | None:
    return _neurons(storage, netuid)[uid] if uid < storage.number("SubnetworkN", netuid) else None


def _neurons(storage: Storage, netuid: int) -> list[dict[str, Any]]:
    hotkeys = neurons.hotkeys(storage, netuid)
    by_uid = _by_uid(storage, netuid, hotkeys)
    trust = storage.row("ValidatorTrust", netuid)
    found = []
    for uid, hotkey in enumerate(hotkeys):
        coldkey = by_uid["coldkeys"][uid]
        found.append(
            {
                "hotkey": hotkey,
                "coldkey": coldkey,
                "uid": uid,
                "netuid": netuid,
                "axon_info": storage.value("Axons", netuid, hotkey) or NO_AXON,
                "prometheus_info": NO_PROMETHEUS,
                "stake": [(coldkey, by_uid["total_stake"][uid])],
                "incentive": by_uid["incentives"][uid],
                "validator_trust": trust[uid],
                "pruning_score": PRUNING_SCORE,
                **{
                    field: by_uid[field][uid]
                    for field in ("active", "rank", "emission", "consensus", "trust", "dividends", "last_update")
                },
                "validator_permit": by_uid["validator_permit"][uid],
            }
        )
    return found


def _by_uid(storage: Storage, netuid: int, hotkeys: list[str]) -> dict[str, Any]:
    """Everything that metagraph and subnet state list by uid."""
    root = [storage.number("TotalHotkeyAlpha", hotkey, ROOT) for hotkey in hotkeys]
    weight = storage.number("TaoWeight")
    zeros = [0] * len(hotkeys)
    return {
        "hotkeys": hotkeys,
        "coldkeys": [storage.account("Owner", hotkey) for hotkey in hotkeys],
        "pruning_score": zeros,
        "trust": zeros,
        "rank": zeros,
        "block_at_registration": [storage.number("BlockAtRegistration", netuid, uid) for uid in range(len(hotkeys))],
        "alpha_stake": [storage.number("TotalHotkeyAlpha", hotkey, netuid) for hotkey in hotkeys],
        "tao_stake": [rao * weight >> 64 for rao in root],
        "total_stake": [stake.total_stake(storage, hotkey, netuid) for hotkey in hotkeys],
        **{field: storage.row(name, netuid)[: len(hotkeys)] for field, name in VECTORS.items()},
    }


def _pool(storage: Storage, netuid: int) -> dict[str, Any]:
    pending = storage.number("PendingServerEmission", netuid) + storage.number("PendingValidatorEmission", netuid)
    amounts = {field: storage.number(name, netuid) for field, name in POOL.items()}
    return amounts | {"pending_alpha_emission": pending, "pending_root_emission": 0}


def _name(storage: Storage, netuid: int) -> list[int]:
    identity = storage.value("SubnetIdentitiesV3", netuid)
    if identity:
        return list(octets(identity["subnet_name"]))
    return list(b"root" if netuid == ROOT else f"local{netuid}".encode())


def block_emission(storage: Storage) -> int:
    return emission.block_emission(storage.number("TotalIssuance"))


ANSWERS: dict[tuple[str, str], Answer] = {
    ("NeuronInfoRuntimeApi", "get_neurons"): neurons_full,
    ("NeuronInfoRuntimeApi", "get_neuron"): neuron,
    ("NeuronInfoRuntimeApi", "get_neurons_lite"): _neurons,
    ("NeuronInfoRuntimeApi", "get_neuron_lite"): neuron_lite,
    ("SubnetInfoRuntimeApi", "get_metagraph"): metagraph,
    ("SubnetInfoRuntimeApi", "get_all_metagraphs"): lambda storage: [metagraph(storage, n) for n in netuids(storage)],
    ("SubnetInfoRuntimeApi", "get_subnet_state"): subnet_state,
    ("SubnetInfoRuntimeApi", "get_dynamic_info"): dynamic_info,
    ("SubnetInfoRuntimeApi", "get_all_dynamic_info"): lambda storage: [
        dynamic_info(storage, n) for n in netuids(storage)
    ],
    ("SubnetInfoRuntimeApi", "get_subnet_hyperparams_v3"): hyperparameters,
    ("SubnetInfoRuntimeApi", "get_next_epoch_start_block"): emission.next_epoch_block,
    ("SubnetInfoRuntimeApi", "get_block_emission"): block_emission,
    ("SubnetInfoRuntimeApi", "get_subnet_to_prune"): nothing(None),
    ("SubnetInfoRuntimeApi", "get_coldkey_auto_stake_hotkey"): nothing(None),
}

"""A subnet's hyperparameters: one row each, from which storage, owner's calls and the listing are made.

Law: a hyperparameter is added by a row here and nowhere else. Names are btcli's. Rows with `owner=no` are root's alone.
Here the owner may also set what only root may on a public network (weights_rate_limit, kappa, max_validators, and a
tempo below 360), because a local net's owner is its operator.
"""

from __future__ import annotations

from typing import NamedTuple

from subnet.chain.local.spec.shapes import Item, item, little_endian

U16_MAX, U64_MAX, ONE_U64F64 = 2**16 - 1, 2**64 - 1, 2**64
RAO_PER_TAO = 10**9


class Hyperparameter(NamedTuple):
    name: str
    """By btcli's name."""
    storage: str
    type: str
    default: int
    """What an absent key reads as; the value that the public runtime declares."""
    setter: str = ""
    """The AdminUtils call; '' when nobody sets it."""
    arg: str = ""
    new: int | None = None
    """What a new subnet begins with, where that differs."""
    owner: bool = True
    """Whether the subnet's owner may set it."""
    listed: bool = True
    """Whether the hyperparameter listing shows it."""
    hasher: str = "Identity"


def _row(line: str) -> Hyperparameter:
    words = line.split()
    name, storage, type_, default, setter, arg = words[:6]
    arg = setter if arg == "=" else arg
    options = dict(word.split("=") for word in words[6:])
    return Hyperparameter(
        name,
        storage,
        type_,
        int(default),
        f"sudo_set_{setter}" if setter != "-" else "",
        arg if arg != "-" else "",
        new=int(options["new"]) if "new" in options else None,
        owner=options.get("owner", "yes") == "yes",
        listed=options.get("listed", "yes") == "yes",
        hasher=options.get("hasher", "Identity"),
    )


# name, storage item, type, default, AdminUtils call without sudo_set_, its argument (= the same, - none), options
_TABLE = f"""
rho Rho u16 10 rho rho
kappa Kappa u16 32767 kappa kappa
immunity_period ImmunityPeriod u16 4096 immunity_period immunity_period new=5000
min_allowed_weights MinAllowedWeights u16 1024 min_allowed_weights min_allowed_weights new=1
max_weights_limit MaxWeightsLimit u16 65535 - -
tempo Tempo u16 10 tempo tempo new=360
min_difficulty MinDifficulty u64 10000000 min_difficulty min_difficulty owner=no
max_difficulty MaxDifficulty u64 {U64_MAX // 4} max_difficulty max_difficulty
difficulty Difficulty u64 10000000 difficulty difficulty owner=no
weights_version WeightsVersionKey u64 0 weights_version_key weights_version_key
weights_rate_limit WeightsSetRateLimit u64 100 weights_set_rate_limit weights_set_rate_limit
adjustment_interval AdjustmentInterval u16 100 adjustment_interval adjustment_interval owner=no
activity_cutoff_factor ActivityCutoffFactorMilli u32 13889 activity_cutoff_factor factor_milli
registration_allowed NetworkRegistrationAllowed bool 1 network_registration_allowed registration_allowed
network_pow_registration_allowed NetworkPowRegistrationAllowed bool 1 - - new=0
target_regs_per_interval TargetRegistrationsPerInterval u16 2 target_registrations_per_interval = owner=no
min_burn MinBurn TaoBalance 500000 min_burn min_burn
max_burn MaxBurn TaoBalance {100 * RAO_PER_TAO} max_burn max_burn
bonds_moving_avg BondsMovingAverage u64 900000 bonds_moving_average bonds_moving_average
max_regs_per_block MaxRegistrationsPerBlock u16 1 max_registrations_per_block = owner=no new=64
serving_rate_limit ServingRateLimit u64 50 serving_rate_limit serving_rate_limit
max_validators MaxAllowedValidators u16 128 max_allowed_validators max_allowed_validators new=64
max_allowed_uids MaxAllowedUids u16 256 max_allowed_uids max_allowed_uids
adjustment_alpha AdjustmentAlpha u64 0 adjustment_alpha adjustment_alpha
commit_reveal_period RevealPeriodEpochs u64 1 commit_reveal_weights_interval interval hasher=Twox64Concat
commit_reveal_weights_enabled CommitRevealWeightsEnabled bool 1 commit_reveal_weights_enabled enabled
liquid_alpha_enabled LiquidAlphaOn bool 0 liquid_alpha_enabled enabled hasher=Blake2_128Concat
bonds_penalty BondsPenalty u16 65535 bonds_penalty bonds_penalty
alpha_sigmoid_steepness AlphaSigmoidSteepness i16 1000 alpha_sigmoid_steepness steepness listed=no
min_childkey_take MinChildkeyTakePerSubnet PerU16 0 min_childkey_take_per_subnet take listed=no
owner_immune_neuron_limit ImmuneOwnerUidsLimit u16 1 owner_immune_neuron_limit immune_neurons
burn_increase_mult BurnIncreaseMult U64F64 {int(1.26 * ONE_U64F64)} burn_increase_mult burn_increase_mult
burn_half_life BurnHalfLife u16 360 burn_half_life burn_half_life
yuma3_enabled Yuma3On bool 0 yuma3_enabled enabled new=1 hasher=Blake2_128Concat
bonds_reset_enabled BondsResetOn bool 0 bonds_reset_enabled enabled
transfers_enabled TransferToggle bool 1 - -
owner_cut_enabled OwnerCutEnabled bool 1 owner_cut_enabled enabled
owner_cut_auto_lock_enabled OwnerCutAutoLockEnabled bool 0 - -
subnet_emission_enabled SubnetEmissionEnabled bool 1 subnet_emission_enabled enabled owner=no
subnet_is_active SubtokenEnabled bool 0 subtoken_enabled subtoken_enabled owner=no
min_non_immune_uids MinNonImmuneUids u16 10 min_non_immune_uids min owner=no listed=no new=0
"""

HYPERPARAMETERS: tuple[Hyperparameter, ...] = tuple(_row(line) for line in _TABLE.strip().splitlines())
BY_NAME = {row.name: row for row in HYPERPARAMETERS}
BY_SETTER = {row.setter: row for row in HYPERPARAMETERS if row.setter}

LIMITS: dict[str, tuple[int, int]] = {
    "tempo": (1, 50_400),
    "max_allowed_uids": (1, 256),
    "max_validators": (1, 256),
    "min_allowed_weights": (0, 256),
    "kappa": (0, U16_MAX),
    "activity_cutoff_factor": (1_000, 50_000),
    "burn_increase_mult": (ONE_U64F64, 3 * ONE_U64F64),
    "burn_half_life": (1, U16_MAX),
    "bonds_moving_avg": (0, 1_000_000),
    "max_burn": (1, 10**18),
    "commit_reveal_period": (1, 100),
    "weights_rate_limit": (0, 10**6),
}
"""Raw bounds, both included; the others take all that their type holds."""
LISTED_TYPES = {
    "bool": "Bool",
    "u16": "U16",
    "u32": "U32",
    "u64": "U64",
    "TaoBalance": "TaoBalance",
    "U64F64": "U64F64",
}
"""Storage type → variant of HyperparamValue."""


def items() -> tuple[Item, ...]:
    """Their storage."""
    return tuple(item(row.storage, row.type, f"{row.hasher}:NetUid", _default(row)) for row in HYPERPARAMETERS)


def _default(row: Hyperparameter) -> int | bytes:
    return little_endian(row.default, 16) if row.type == "U64F64" else row.default

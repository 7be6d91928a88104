"""The types that storage, calls and events share.

Law: only names that a Bittensor client meets, with the shapes it expects; paths matter, because clients recognise
balances, accounts and ratios by them.
"""

from __future__ import annotations

from subnet.chain.local.spec.shapes import Enum, Field, Shape, Variant, enum, newtype, struct

COMMON = "subtensor_runtime_common"
PALLET = "pallet_subtensor::pallet"
COMMITMENT_BYTES_MAX = 128
"""Longest raw field of a commitment: `Data` has one variant per length."""
IDENTITY_FIELDS = "subnet_name github_repo subnet_contact subnet_url discord description logo_url additional".split()
PERSON_FIELDS = "name url github_repo image discord description additional".split()

_raw = (Variant(f"Raw{size}", size + 1, (Field(None, f"[u8;{size}]"),)) for size in range(COMMITMENT_BYTES_MAX + 1))
_FIRST_AFTER_RAW = COMMITMENT_BYTES_MAX + 2
_timelock = (Field("encrypted", "Vec<u8>"), Field("reveal_round", "u64"))
_other_data: tuple[tuple[str, tuple[Field, ...]], ...] = (
    *((name, (Field(None, "[u8;32]"),)) for name in ("BlakeTwo256", "Sha256", "Keccak256", "ShaThree256")),
    ("TimelockEncrypted", _timelock),
    ("ResetBondsFlag", ()),
    ("BigRaw", (Field(None, "Vec<u8>"),)),
    ("TimelockRevealFailed", _timelock),
)
_data = (
    Variant("None", 0, ()),
    *_raw,
    *(Variant(name, _FIRST_AFTER_RAW + at, inside) for at, (name, inside) in enumerate(_other_data)),
)
_mortal = (Variant(f"Mortal{index}", index, (Field(None, "u8"),)) for index in range(1, 256))

TYPES: dict[str, Shape] = {
    "AccountId": newtype("sp_core::crypto::AccountId32", "[u8;32]"),
    "H256": newtype("primitive_types::H256", "[u8;32]"),
    "NetUid": newtype(f"{COMMON}::NetUid", "u16"),
    "NetUidStorageIndex": newtype(f"{COMMON}::NetUidStorageIndex", "u16"),
    "MechId": newtype(f"{COMMON}::MechId", "u8"),
    "TaoBalance": newtype(f"{COMMON}::currency::TaoBalance", "u64"),
    "AlphaBalance": newtype(f"{COMMON}::currency::AlphaBalance", "u64"),
    "PerU16": newtype("sp_arithmetic::per_things::PerU16", "u16"),
    "Perquintill": newtype("sp_arithmetic::per_things::Perquintill", "u64"),
    "ExtraFlags": newtype("pallet_balances::types::ExtraFlags", "u128"),
    "U64F64": struct("substrate_fixed::FixedU128", "bits:u128"),
    "I96F32": struct("substrate_fixed::FixedI128", "bits:i128"),
    "I64F64": struct("substrate_fixed::FixedI128", "bits:i128"),
    "I32F32": struct("substrate_fixed::FixedI64", "bits:i64"),
    "AccountData": struct(
        "pallet_balances::types::AccountData",
        "free:TaoBalance reserved:TaoBalance frozen:TaoBalance flags:ExtraFlags",
    ),
    "AccountInfo": struct(
        "frame_system::AccountInfo", "nonce:u32 consumers:u32 providers:u32 sufficients:u32 data:AccountData"
    ),
    "Weight": struct("sp_weights::weight_v2::Weight", "ref_time:Compact<u64> proof_size:Compact<u64>"),
    "DispatchClass": enum("frame_support::dispatch::DispatchClass", "Normal", "Operational", "Mandatory"),
    "Pays": enum("frame_support::dispatch::Pays", "Yes", "No"),
    "DispatchEventInfo": struct("frame_system::DispatchEventInfo", "weight:Weight class:DispatchClass pays_fee:Pays"),
    "ModuleError": struct("sp_runtime::ModuleError", "index:u8 error:[u8;4]"),
    "DispatchError": enum(
        "sp_runtime::DispatchError",
        "Other",
        "CannotLookup",
        "BadOrigin",
        "Module _:ModuleError",
        "ConsumerRemaining",
        "NoProviders",
    ),
    "DispatchResult": enum("Result", "Ok _:()", "Err _:DispatchError"),
    "Phase": enum("frame_system::Phase", "ApplyExtrinsic _:u32", "Finalization", "Initialization"),
    "EventRecord": struct("frame_system::EventRecord", "phase:Phase event:RuntimeEvent topics:Vec<H256>"),
    "MultiAddress": enum(
        "sp_runtime::multiaddress::MultiAddress",
        "Id _:AccountId",
        "Index _:Compact<()>",
        "Raw _:Vec<u8>",
        "Address32 _:[u8;32]",
        "Address20 _:[u8;20]",
    ),
    "MultiSignature": enum("sp_runtime::MultiSignature", "Ed25519 _:[u8;64]", "Sr25519 _:[u8;64]", "Ecdsa _:[u8;65]"),
    "Era": Enum("sp_runtime::generic::era::Era", (Variant("Immortal", 0, ()), *_mortal)),
    "Mode": enum("frame_metadata_hash_extension::Mode", "Disabled", "Enabled"),
    "CheckMetadataHash": struct("frame_metadata_hash_extension::CheckMetadataHash", "mode:Mode"),
    "EpochConsensus": enum(f"{PALLET}::EpochConsensus", "Yuma", "Null"),
    "RecycleOrBurnEnum": enum(f"{PALLET}::RecycleOrBurnEnum", "Burn", "Recycle"),
    "ConsensusMode": enum(f"{PALLET}::ConsensusMode", "Current", "Previous", "Auto"),
    "AxonInfo": struct(
        f"{PALLET}::AxonInfo",
        "block:u64 version:u32 ip:u128 port:u16 ip_type:u8 protocol:u8 placeholder1:u8 placeholder2:u8",
    ),
    "PrometheusInfo": struct(f"{PALLET}::PrometheusInfo", "block:u64 version:u32 ip:u128 port:u16 ip_type:u8"),
    "SubnetIdentity": struct(f"{PALLET}::SubnetIdentityV3", " ".join(f"{name}:Vec<u8>" for name in IDENTITY_FIELDS)),
    "ChainIdentity": struct(f"{PALLET}::ChainIdentityV2", " ".join(f"{name}:Vec<u8>" for name in PERSON_FIELDS)),
    "LockState": struct(f"{PALLET}::LockState", "locked_mass:AlphaBalance conviction:U64F64 last_update:u64"),
    "H160": newtype("primitive_types::H160", "[u8;20]"),
    "MinerCollateralState": struct(
        f"{PALLET}::MinerCollateralState",
        "locked:AlphaBalance drain_ratio:U64F64 min_locked:AlphaBalance earned:AlphaBalance",
    ),
    "SafeFloat": struct("share_pool::SafeFloat", "mantissa:u128 exponent:i64"),
    "Data": Enum("pallet_commitments::types::Data", _data),
    "CommitmentFields": newtype("bounded_collections::bounded_vec::BoundedVec", "Vec<Data>"),
    "CommitmentInfo": struct("pallet_commitments::types::CommitmentInfo", "fields:CommitmentFields"),
    "Registration": struct(
        "pallet_commitments::types::Registration", "deposit:TaoBalance block:u32 info:CommitmentInfo"
    ),
    "UsageTracker": struct("pallet_commitments::types::UsageTracker", "last_epoch:u64 used_space:u64"),
    "OpaqueMetadata": newtype("sp_core::OpaqueMetadata", "Vec<u8>"),
    "Extrinsic": newtype("sp_runtime::generic::unchecked_extrinsic::UncheckedExtrinsic", "Vec<u8>"),
    "Uxt": newtype("fp_self_contained::unchecked_extrinsic::UncheckedExtrinsic", "Extrinsic"),
}

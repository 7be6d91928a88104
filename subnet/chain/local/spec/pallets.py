"""The other pallets, and the list of them all.

Law: order and indexes are those of the public runtime; only the calls that `ledger` handles are declared.
"""

from __future__ import annotations

from subnet.chain.local.spec.hyperparameters import HYPERPARAMETERS
from subnet.chain.local.spec.shapes import Constant, Pallet, item, little_endian, optional
from subnet.chain.local.spec.subtensor import SUBTENSOR, calls, events

SPEC_NAME, SPEC_VERSION, TRANSACTION_VERSION, SS58_FORMAT = "node-subtensor", 475, 1, 42
EXISTENTIAL_DEPOSIT_RAO = 500
BLOCK_HASH_COUNT = 2400
COMMITMENT_SPACE_BYTES = 3100
"""What one hotkey may commit within a tempo."""

SIGNED_EXTENSIONS = (
    ("CheckNonZeroSender", "()", "()"),
    ("CheckSpecVersion", "()", "u32"),
    ("CheckTxVersion", "()", "u32"),
    ("CheckGenesis", "()", "H256"),
    ("CheckMortality", "Era", "H256"),
    ("CheckNonce", "Compact<u32>", "()"),
    ("CheckWeight", "()", "()"),
    ("ChargeTransactionPayment", "Compact<TaoBalance>", "()"),
    ("CheckMetadataHash", "CheckMetadataHash", "Option<[u8;32]>"),
)


def _constant(name: str, type_: str, value: int, width_bytes: int) -> Constant:
    return Constant(name, type_, little_endian(value, width_bytes))


_NO_ACCOUNT = bytes(4 * 4 + 3 * 8) + little_endian(1 << 127, 16)
"""Counters, balances, and the flag of the present accounting."""
_ADMIN_CALLS = (
    *(f"{row.setter} netuid:NetUid {row.arg}:{row.type}" for row in HYPERPARAMETERS if row.setter),
    "sudo_set_alpha_values netuid:NetUid alpha_low:u16 alpha_high:u16",
    "sudo_set_epoch_consensus netuid:NetUid mode:EpochConsensus",
    "sudo_trim_to_max_allowed_uids netuid:NetUid max_n:u16",
)


def pallets(block_ms: int) -> tuple[Pallet, ...]:
    """`block_ms` is what clients are told about the time between two blocks."""
    system = Pallet(
        "System",
        0,
        items=(
            item(
                "Account",
                "AccountInfo",
                "Blake2_128Concat:AccountId",
                _NO_ACCOUNT,
            ),
            item("BlockHash", "H256", "Twox64Concat:u32"),
            item("Number", "u32"),
            item("ParentHash", "H256"),
            item("Events", "Vec<EventRecord>"),
            item("EventCount", "u32"),
        ),
        calls=calls(("remark remark:Vec<u8>", "remark_with_event remark:Vec<u8>")),
        events=events(
            (
                "ExtrinsicSuccess dispatch_info:DispatchEventInfo",
                "ExtrinsicFailed dispatch_error:DispatchError dispatch_info:DispatchEventInfo",
                "NewAccount account:AccountId",
                "Remarked sender:AccountId hash:H256",
            )
        ),
        errors=("CallFiltered",),
        constants=(
            _constant("BlockHashCount", "u32", BLOCK_HASH_COUNT, 4),
            _constant("SS58Prefix", "u16", SS58_FORMAT, 2),
        ),
    )
    balances = Pallet(
        "Balances",
        5,
        items=(item("TotalIssuance", "TaoBalance"),),
        calls=calls(
            (
                "transfer_allow_death dest:MultiAddress value:Compact<TaoBalance>",
                "transfer_keep_alive dest:MultiAddress value:Compact<TaoBalance>",
                "transfer_all dest:MultiAddress keep_alive:bool",
                "force_set_balance who:MultiAddress new_free:Compact<TaoBalance>",
            )
        ),
        events=events(
            (
                "Transfer from:AccountId to:AccountId amount:TaoBalance",
                "BalanceSet who:AccountId free:TaoBalance",
                "Endowed account:AccountId free_balance:TaoBalance",
            )
        ),
        errors=("InsufficientBalance", "ExistentialDeposit"),
        constants=(_constant("ExistentialDeposit", "TaoBalance", EXISTENTIAL_DEPOSIT_RAO, 8),),
    )
    return (
        system,
        Pallet("Timestamp", 2, items=(item("Now", "u64"),), calls=calls(("set now:Compact<u64>",))),
        Pallet("Aura", 3, constants=(_constant("SlotDuration", "u64", block_ms, 8),)),
        balances,
        Pallet(
            "TransactionPayment",
            6,
            events=events(("TransactionFeePaid who:AccountId actual_fee:TaoBalance tip:TaoBalance",)),
        ),
        SUBTENSOR,
        *_SMALL,
    )


_COMMITMENT_KEY = "Identity:NetUid Twox64Concat:AccountId"
_SMALL = (
    Pallet(
        "Utility",
        11,
        calls=calls(
            ("batch calls:Vec<RuntimeCall>", "batch_all calls:Vec<RuntimeCall>", "force_batch calls:Vec<RuntimeCall>")
        ),
        events=events(
            (
                "BatchInterrupted index:u32 error:DispatchError",
                "BatchCompleted",
                "BatchCompletedWithErrors",
                "ItemCompleted",
                "ItemFailed error:DispatchError",
            )
        ),
        errors=("TooManyCalls",),
    ),
    Pallet(
        "Sudo",
        12,
        items=(optional("Key", "AccountId"),),
        calls=calls(("sudo call:RuntimeCall",)),
        events=events(("Sudid sudo_result:DispatchResult",)),
        errors=("RequireSudo",),
    ),
    Pallet(
        "Commitments",
        18,
        items=(
            optional("CommitmentOf", "Registration", _COMMITMENT_KEY),
            optional("LastCommitment", "u32", _COMMITMENT_KEY),
            optional("LastBondsReset", "u32", _COMMITMENT_KEY),
            optional("RevealedCommitments", "Vec<(Vec<u8>,u64)>", _COMMITMENT_KEY),
            optional("UsedSpaceOf", "UsageTracker", _COMMITMENT_KEY),
            item("MaxSpace", "u32", default=COMMITMENT_SPACE_BYTES),
        ),
        calls=calls(("set_commitment netuid:NetUid info:CommitmentInfo",)),
        events=events(("Commitment netuid:NetUid who:AccountId",)),
        errors=("TooManyFieldsInCommitmentInfo", "AccountNotAllowedCommit", "SpaceLimitExceeded"),
    ),
    Pallet("AdminUtils", 19, calls=calls(_ADMIN_CALLS), errors=("MaxAllowedUIdsLessThanCurrentUIds",)),
    Pallet("Swap", 28, items=(item("FeeRate", "u16", "Twox64Concat:NetUid", 33),)),
    Pallet(
        "MevShield",
        30,
        items=(optional("CurrentKey", "Vec<u8>"), optional("NextKey", "Vec<u8>")),
        calls=calls(("submit_encrypted ciphertext:Vec<u8>",)),
        events=events(("EncryptedSubmitted id:H256 who:AccountId",)),
        errors=("BadEncKeyLen", "Unreachable"),
    ),
)

"""Storage of the SubtensorModule pallet, as far as clients read it.

Law: names, hashers, types and defaults are those of the public runtime (the conformance test lists every exception).
An item that the local chain never writes is here because a client reads it; it then reads as its default.
"""

from __future__ import annotations

from subnet.chain.local.spec import hyperparameters
from subnet.chain.local.spec.shapes import Item, item, little_endian, optional

NET, ACCOUNT, UID = "Identity:NetUid", "Blake2_128Concat:AccountId", "Identity:u16"
MECHANISM = "Identity:NetUidStorageIndex"


def _plain(table: str, keys: str) -> tuple[Item, ...]:
    """Lines `Name type default`; the default `-` makes it optional."""
    found = []
    for line in table.strip().splitlines():
        name, type_, default = line.split()
        found.append(optional(name, type_, keys) if default == "-" else item(name, type_, keys, int(default)))
    return tuple(found)


_PER_SUBNET = """
NetworksAdded bool 0
NetworkRegisteredAt u64 0
RegisteredSubnetCounter u64 0
SubnetMechanism u16 0
SubnetworkN u16 0
SubnetOwner AccountId 0
SubnetOwnerHotkey AccountId 0
SubnetLocked TaoBalance 0
LargestLocked u64 0
SubnetTAO TaoBalance 0
SubnetAlphaIn AlphaBalance 0
SubnetAlphaOut AlphaBalance 0
SubnetProtocolAlpha AlphaBalance 0
SubnetTaoInEmission TaoBalance 0
SubnetAlphaInEmission AlphaBalance 0
SubnetAlphaOutEmission AlphaBalance 0
SubnetExcessTao TaoBalance 0
SubnetRootSellTao TaoBalance 0
SubnetVolume u128 0
SubnetMovingPrice I96F32 0
SubnetTaoFlow i64 0
SubnetProtocolFlow i64 0
TotalAlphaStaked AlphaBalance 0
PendingServerEmission AlphaBalance 0
PendingValidatorEmission AlphaBalance 0
PendingRootAlphaDivs AlphaBalance 0
PendingOwnerCut AlphaBalance 0
FirstEmissionBlockNumber u64 -
BlocksSinceLastStep u64 0
LastMechansimStepBlock u64 0
LastEpochBlock u64 0
PendingEpochAt u64 0
SubnetEpochIndex u64 0
Burn TaoBalance 100000000
RAORecycledForRegistration TaoBalance 0
RegistrationsThisBlock u16 0
RegistrationsThisInterval u16 0
BurnRegistrationsThisInterval u16 0
LastAdjustmentBlock u64 0
ActivityCutoff u16 5000
MinAllowedUids u16 64
CollateralLockShare u16 0
Active Vec<bool> 0
ValidatorPermit Vec<bool> 0
Emission Vec<AlphaBalance> 0
Dividends Vec<PerU16> 0
Consensus Vec<PerU16> 0
ValidatorTrust Vec<PerU16> 0
StakeWeight Vec<u16> 0
VotingPowerTrackingEnabled bool 0
TotalVotingPower u64 0
"""
_GLOBAL = """
TotalIssuance TaoBalance 0
TotalStake TaoBalance 0
TotalNetworks u16 0
SubnetLimit u16 128
BlockEmission u64 1000000000
TaoWeight u64 971718665099567868
SubnetOwnerCut u16 11796
StakeThreshold u64 0
TxRateLimit u64 1000
NetworkRateLimit u64 7200
NetworkImmunityPeriod u64 1296000
NetworkMinLockCost TaoBalance 1000000000000
NetworkLastLockCost TaoBalance 1000000000000
NetworkLockReductionInterval u64 100800
StartCallDelay u64 0
AdminFreezeWindow u16 10
OwnerHyperparamRateLimit u16 2
NominatorMinRequiredStake u64 0
RootStakeUnlockInterval u64 0
DissolveCleanupQueue Vec<NetUid> 0
MinDelegateTake PerU16 0
MaxDelegateTake PerU16 11796
MinChildkeyTake PerU16 0
MaxChildkeyTake PerU16 11796
UnlockRate u64 934866
MaturityRate u64 934866
CommitRevealWeightsVersion u16 4
MaxMechanismCount MechId 2
NumStakingColdkeys u64 0
BasketTradingEnabled bool 0
"""
_SYMBOL_DEFAULT = b"\x10" + "𝜏".encode()
_ZERO_16, _ZERO_24 = bytes(16), bytes(24)

SUBTENSOR_ITEMS: tuple[Item, ...] = (
    *hyperparameters.items(),
    *_plain(_PER_SUBNET, NET),
    *_plain(_GLOBAL, ""),
    item("TokenSymbol", "Vec<u8>", NET, _SYMBOL_DEFAULT),
    item("AlphaValues", "(u16,u16)", NET, little_endian(45875, 2) + little_endian(58982, 2)),
    item("RecycleOrBurn", "RecycleOrBurnEnum", NET, b"\0"),
    item("LiquidAlphaConsensusMode", "ConsensusMode", NET, b"\2"),
    item("SubnetEpochConsensus", "EpochConsensus", NET, b"\0"),
    item("CollateralDrainRatio", "U64F64", NET, little_endian(2**64, 16)),
    item("MechanismCountCurrent", "MechId", "Twox64Concat:NetUid", 1),
    optional("MechanismEmissionSplit", "Vec<u16>", "Twox64Concat:NetUid"),
    item("RootClaimableThreshold", "I96F32", "Blake2_128Concat:NetUid", little_endian(500_000 << 32, 16)),
    optional("SubnetEmaTaoFlow", "(u64,I64F64)", NET),
    optional("SubnetIdentitiesV3", "SubnetIdentity", "Blake2_128Concat:NetUid"),
    optional("OwnerLock", "LockState", NET),
    optional("DecayingOwnerLock", "LockState", NET),
    # by mechanism
    item("Incentive", "Vec<PerU16>", MECHANISM),
    item("LastUpdate", "Vec<u64>", MECHANISM),
    item("Weights", "Vec<(u16,u16)>", f"{MECHANISM} {UID}", b"\0"),
    item("Bonds", "Vec<(u16,u16)>", f"{MECHANISM} {UID}", b"\0"),
    item(
        "TimelockedWeightCommits",
        "Vec<(AccountId,u64,Vec<u8>,u64)>",
        "Twox64Concat:NetUidStorageIndex Twox64Concat:u64",
        b"\0",
    ),
    # by uid or hotkey
    optional("Uids", "u16", f"{NET} {ACCOUNT}"),
    item("Keys", "AccountId", f"{NET} {UID}"),
    item("BlockAtRegistration", "u64", f"{NET} {UID}"),
    item("IsNetworkMember", "bool", f"{ACCOUNT} {NET}"),
    optional("Axons", "AxonInfo", f"{NET} {ACCOUNT}"),
    optional("Prometheus", "PrometheusInfo", f"{NET} {ACCOUNT}"),
    item("Owner", "AccountId", ACCOUNT),
    item("OwnedHotkeys", "Vec<AccountId>", ACCOUNT),
    item("StakingHotkeys", "Vec<AccountId>", ACCOUNT),
    item("Delegates", "PerU16", ACCOUNT, 11796),
    item("AccountFlags", "u128", ACCOUNT),
    optional("IdentitiesV2", "ChainIdentity", ACCOUNT),
    optional("ColdkeySwapAnnouncements", "(u32,H256)", "Twox64Concat:AccountId"),
    optional("ColdkeySwapDisputes", "u32", "Twox64Concat:AccountId"),
    optional("AutoStakeDestination", "AccountId", f"{ACCOUNT} {NET}"),
    item("ChildKeys", "Vec<(u64,AccountId)>", f"{ACCOUNT} {NET}", b"\0"),
    item("ParentKeys", "Vec<(u64,AccountId)>", f"{ACCOUNT} {NET}", b"\0"),
    item("PendingChildKeys", "(Vec<(u64,AccountId)>,u64)", f"{NET} {ACCOUNT}", bytes(9)),
    optional("ChildkeyThresholdSuspended", "()", ACCOUNT),
    optional("MinerCollateral", "MinerCollateralState", f"{NET} {ACCOUNT} {ACCOUNT}"),
    optional("AssociatedEvmAddress", "(H160,u64)", "Twox64Concat:NetUid Twox64Concat:u16"),
    item("ChildkeyTake", "PerU16", f"{ACCOUNT} {NET}"),
    # stake: a pool of shares for each (hotkey, netuid)
    item("TotalHotkeyAlpha", "AlphaBalance", f"{ACCOUNT} {NET}"),
    item("TotalHotkeyAlphaLastEpoch", "AlphaBalance", f"{ACCOUNT} {NET}"),
    item("AlphaDividendsPerSubnet", "AlphaBalance", f"{NET} {ACCOUNT}"),
    item("TotalHotkeySharesV2", "SafeFloat", f"{ACCOUNT} {NET}", _ZERO_24),
    item("AlphaV2", "SafeFloat", f"{ACCOUNT} {ACCOUNT} {NET}", _ZERO_24),
    optional("Lock", "LockState", f"{ACCOUNT} {NET} {ACCOUNT}"),
    optional("LockingColdkeys", "()", f"{NET} {ACCOUNT} {ACCOUNT}"),
    optional("HotkeyLock", "LockState", f"{NET} {ACCOUNT}"),
    optional("DecayingHotkeyLock", "LockState", f"{NET} {ACCOUNT}"),
    optional("DecayingLock", "bool", f"{ACCOUNT} {NET}"),
    optional("LastColdkeyHotkeyStakeBlock", "u64", "Twox64Concat:AccountId Twox64Concat:AccountId"),
)

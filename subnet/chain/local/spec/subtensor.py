"""Calls, events and errors of the SubtensorModule pallet that the local chain carries out.

Law: a call is listed when `ledger` handles it, with the arguments of the public runtime in their order. Errors carry
the public names, so that a client's explanations fit.
"""

from __future__ import annotations

from subnet.chain.local.spec.shapes import Call, Constant, Event, Pallet, fields
from subnet.chain.local.spec.storage import SUBTENSOR_ITEMS
from subnet.chain.local.spec.types import IDENTITY_FIELDS, PERSON_FIELDS

_AXON = "netuid:NetUid version:u32 ip:u128 port:u16 ip_type:u8 protocol:u8 placeholder1:u8 placeholder2:u8"
_WEIGHTS = "dests:Vec<u16> weights:Vec<u16> version_key:u64"
_TIMELOCKED = "commit:Vec<u8> reveal_round:u64 commit_reveal_version:u16"
_IDENTITY = " ".join(f"{name}:Vec<u8>" for name in IDENTITY_FIELDS)
_PERSON = " ".join(f"{name}:Vec<u8>" for name in PERSON_FIELDS)
_LIMIT = "limit_price:TaoBalance allow_partial:bool"
_CALLS = (
    f"set_weights netuid:NetUid {_WEIGHTS}",
    f"set_mechanism_weights netuid:NetUid mecid:MechId {_WEIGHTS}",
    f"commit_timelocked_weights netuid:NetUid {_TIMELOCKED}",
    f"commit_timelocked_mechanism_weights netuid:NetUid mecid:MechId {_TIMELOCKED}",
    "add_stake hotkey:AccountId netuid:NetUid amount_staked:TaoBalance",
    f"add_stake_limit hotkey:AccountId netuid:NetUid amount_staked:TaoBalance {_LIMIT}",
    "remove_stake hotkey:AccountId netuid:NetUid amount_unstaked:AlphaBalance",
    f"remove_stake_limit hotkey:AccountId netuid:NetUid amount_unstaked:AlphaBalance {_LIMIT}",
    "remove_stake_full_limit hotkey:AccountId netuid:NetUid limit_price:Option<TaoBalance>",
    "unstake_all hotkey:AccountId",
    "unstake_all_alpha hotkey:AccountId",
    "move_stake origin_hotkey:AccountId destination_hotkey:AccountId origin_netuid:NetUid destination_netuid:NetUid "
    "alpha_amount:AlphaBalance",
    "transfer_stake destination_coldkey:AccountId hotkey:AccountId origin_netuid:NetUid destination_netuid:NetUid "
    "alpha_amount:AlphaBalance",
    "swap_stake hotkey:AccountId origin_netuid:NetUid destination_netuid:NetUid alpha_amount:AlphaBalance",
    "swap_stake_limit hotkey:AccountId origin_netuid:NetUid destination_netuid:NetUid alpha_amount:AlphaBalance "
    f"{_LIMIT}",
    f"serve_axon {_AXON}",
    f"serve_axon_tls {_AXON} certificate:Vec<u8>",
    "burned_register netuid:NetUid hotkey:AccountId",
    "register_limit netuid:NetUid hotkey:AccountId limit_price:u64",
    "root_register hotkey:AccountId",
    "register_network hotkey:AccountId",
    "register_network_with_identity hotkey:AccountId identity:Option<SubnetIdentity>",
    "start_call netuid:NetUid",
    "trigger_epoch netuid:NetUid",
    "swap_hotkey hotkey:AccountId new_hotkey:AccountId netuid:Option<NetUid>",
    "swap_hotkey_v2 hotkey:AccountId new_hotkey:AccountId netuid:Option<NetUid> keep_stake:bool",
    "decrease_take hotkey:AccountId take:PerU16",
    "increase_take hotkey:AccountId take:PerU16",
    "try_associate_hotkey hotkey:AccountId",
    f"set_identity {_PERSON}",
    f"set_subnet_identity netuid:NetUid {_IDENTITY}",
    "update_symbol netuid:NetUid symbol:Vec<u8>",
)
_STAKE_EVENT = "_:AccountId _:AccountId _:TaoBalance _:AlphaBalance _:NetUid _:u64"
_EVENTS = (
    "NetworkAdded _:NetUid _:u16",
    "NeuronRegistered _:NetUid _:u16 _:AccountId",
    f"StakeAdded {_STAKE_EVENT}",
    f"StakeRemoved {_STAKE_EVENT}",
    "StakeMoved _:AccountId _:AccountId _:NetUid _:AccountId _:NetUid _:TaoBalance",
    "StakeTransferred _:AccountId _:AccountId _:AccountId _:NetUid _:NetUid _:TaoBalance",
    "StakeSwapped _:AccountId _:AccountId _:NetUid _:NetUid _:TaoBalance",
    "WeightsSet _:NetUidStorageIndex _:u16",
    "TimelockedWeightsCommitted _:AccountId _:NetUidStorageIndex _:H256 _:u64",
    "TimelockedWeightsRevealed _:NetUidStorageIndex _:AccountId",
    "AxonServed _:NetUid _:AccountId",
    "FirstEmissionBlockNumberSet _:NetUid _:u64",
    "EpochTriggered netuid:NetUid by:AccountId fires_at:u64",
    "IncentiveAlphaEmittedToMiners netuid:NetUidStorageIndex emissions:Vec<AlphaBalance>",
    "HotkeySwapped coldkey:AccountId old_hotkey:AccountId new_hotkey:AccountId",
    "HotkeySwappedOnSubnet coldkey:AccountId old_hotkey:AccountId new_hotkey:AccountId netuid:NetUid",
    "TakeDecreased _:AccountId _:AccountId _:PerU16",
    "TakeIncreased _:AccountId _:AccountId _:PerU16",
    "SubnetIdentitySet _:NetUid",
    "ChainIdentitySet _:AccountId",
    "SymbolUpdated netuid:NetUid symbol:Vec<u8>",
)
ERRORS = """
SubnetNotExists RegistrationNotPermittedOnRootSubnet HotKeyNotRegisteredInSubNet HotKeyAlreadyRegisteredInSubNet
SubNetRegistrationDisabled TooManyRegistrationsThisBlock NotEnoughBalanceToStake NonAssociatedColdKey
NoNeuronIdAvailable LiquidAlphaDisabled AlphaLowOutOfRange
CannotAffordLockCost SubnetLimitReached WeightVecNotEqualSize DuplicateUids UidVecContainInvalidOne WeightVecLengthIsLow
MaxWeightExceeded SettingWeightsTooFast NeuronNoValidatorPermit NotEnoughStakeToSetWeights IncorrectWeightVersionKey
CommitRevealEnabled CommitRevealDisabled CommittingWeightsTooFast ServingRateLimitExceeded InvalidIpAddress InvalidPort
InvalidIpType HotKeyNotRegisteredInNetwork AmountTooLow NotEnoughStakeToWithdraw NotEnoughStake HotKeyAccountNotExists
SubtokenDisabled NotSubnetOwner FirstEmissionBlockNumberAlreadySet NeedWaitingMoreBlocksToStarCall InvalidRevealRound
IncorrectCommitRevealVersion TooManyUnrevealedCommits SlippageTooHigh NetworkTxRateLimitExceeded InsufficientLiquidity
InvalidValue TempoOutOfBounds ActivityCutoffFactorMilliOutOfBounds EpochTriggerAlreadyPending NewHotKeyIsSameWithOld
DelegateTakeTooLow DelegateTakeTooHigh RegistrationPriceLimitExceeded MechanismDoesNotExist TransferDisallowed
SameNetuid InvalidIdentity StakeTooLowForRoot TrimmingWouldExceedMaxImmunePercentage
""".split()


def calls(lines: tuple[str, ...]) -> tuple[Call, ...]:
    """`name arg:type ...` each; the index is the position."""
    parsed = ((line.partition(" ")[0], line.partition(" ")[2]) for line in lines)
    return tuple(Call(name, index, fields(rest)) for index, (name, rest) in enumerate(parsed))


def events(lines: tuple[str, ...]) -> tuple[Event, ...]:
    parsed = ((line.partition(" ")[0], line.partition(" ")[2]) for line in lines)
    return tuple(Event(name, index, fields(rest)) for index, (name, rest) in enumerate(parsed))


SUBTENSOR = Pallet(
    "SubtensorModule",
    7,
    items=SUBTENSOR_ITEMS,
    calls=calls(_CALLS),
    events=events(_EVENTS),
    errors=tuple(ERRORS),
    constants=(Constant("InitialStartCallDelay", "u64", bytes(8)),),
)

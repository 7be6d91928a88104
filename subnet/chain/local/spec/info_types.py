"""The types that runtime APIs answer with.

Law: field order is the wire format; it follows the public runtime exactly.
"""

from __future__ import annotations

from subnet.chain.local.spec.shapes import Shape, enum, newtype, struct

RPC = "pallet_subtensor::rpc_info"
PERSON = "hotkey:AccountId coldkey:AccountId"
_NEURON = (
    f"{PERSON} uid:Compact<u16> netuid:Compact<NetUid> active:bool axon_info:AxonInfo prometheus_info:PrometheusInfo "
    "stake:Vec<(AccountId,Compact<AlphaBalance>)> rank:Compact<u16> emission:Compact<AlphaBalance> "
    "incentive:Compact<PerU16> consensus:Compact<PerU16> trust:Compact<PerU16> validator_trust:Compact<PerU16> "
    "dividends:Compact<PerU16> last_update:Compact<u64> validator_permit:bool"
)
_POOL = (
    "alpha_in:Compact<AlphaBalance> alpha_out:Compact<AlphaBalance> tao_in:Compact<TaoBalance> "
    "alpha_out_emission:Compact<AlphaBalance> alpha_in_emission:Compact<AlphaBalance> "
    "tao_in_emission:Compact<TaoBalance> pending_alpha_emission:Compact<AlphaBalance> "
    "pending_root_emission:Compact<TaoBalance> subnet_volume:Compact<u128>"
)
_BY_UID_STAKE = (
    "alpha_stake:Vec<Compact<AlphaBalance>> tao_stake:Vec<Compact<TaoBalance>> total_stake:Vec<Compact<TaoBalance>>"
)
_BY_UID = (
    "active:Vec<bool> validator_permit:Vec<bool> pruning_score:Vec<Compact<u16>> last_update:Vec<Compact<u64>> "
    "emission:Vec<Compact<AlphaBalance>> dividends:Vec<Compact<PerU16>> incentives:Vec<Compact<PerU16>> "
    "consensus:Vec<Compact<PerU16>> trust:Vec<Compact<PerU16>> rank:Vec<Compact<u16>> "
    f"block_at_registration:Vec<Compact<u64>> {_BY_UID_STAKE}"
)
METAGRAPH = (
    "netuid:Compact<NetUid> name:Vec<Compact<u8>> symbol:Vec<Compact<u8>> identity:Option<SubnetIdentity> "
    "network_registered_at:Compact<u64> owner_hotkey:AccountId owner_coldkey:AccountId block:Compact<u64> "
    "tempo:Compact<u16> last_step:Compact<u64> blocks_since_last_step:Compact<u64> subnet_emission:Compact<u64> "
    f"{_POOL} moving_price:I96F32 rho:Compact<u16> kappa:Compact<u16> min_allowed_weights:Compact<u16> "
    "max_weights_limit:Compact<u16> weights_version:Compact<u64> weights_rate_limit:Compact<u64> "
    "activity_cutoff:Compact<u64> max_validators:Compact<u16> num_uids:Compact<u16> max_uids:Compact<u16> "
    "burn:Compact<TaoBalance> difficulty:Compact<u64> registration_allowed:bool pow_registration_allowed:bool "
    "immunity_period:Compact<u16> min_difficulty:Compact<u64> max_difficulty:Compact<u64> "
    "min_burn:Compact<TaoBalance> max_burn:Compact<TaoBalance> adjustment_alpha:Compact<u64> "
    "adjustment_interval:Compact<u16> target_regs_per_interval:Compact<u16> max_regs_per_block:Compact<u16> "
    "serving_rate_limit:Compact<u64> commit_reveal_weights_enabled:bool commit_reveal_period:Compact<u64> "
    "liquid_alpha_enabled:bool alpha_high:Compact<u16> alpha_low:Compact<u16> bonds_moving_avg:Compact<u64> "
    "hotkeys:Vec<AccountId> coldkeys:Vec<AccountId> identities:Vec<Option<ChainIdentity>> axons:Vec<AxonInfo> "
    f"{_BY_UID} tao_dividends_per_hotkey:Vec<(AccountId,Compact<TaoBalance>)> "
    "alpha_dividends_per_hotkey:Vec<(AccountId,Compact<AlphaBalance>)> collateral_locked:Vec<Compact<AlphaBalance>> "
    "collateral_min:Vec<Compact<AlphaBalance>> collateral_earned:Vec<Compact<AlphaBalance>>"
)

INFO_TYPES: dict[str, Shape] = {
    "NeuronInfoLite": struct(f"{RPC}::neuron_info::NeuronInfoLite", f"{_NEURON} pruning_score:Compact<u16>"),
    "NeuronInfo": struct(
        f"{RPC}::neuron_info::NeuronInfo",
        f"{_NEURON} weights:Vec<(Compact<u16>,Compact<u16>)> bonds:Vec<(Compact<u16>,Compact<u16>)> "
        "pruning_score:Compact<u16>",
    ),
    "Metagraph": struct(f"{RPC}::metagraph::Metagraph", METAGRAPH),
    "SubnetState": struct(
        f"{RPC}::show_subnet::SubnetState",
        f"netuid:Compact<NetUid> hotkeys:Vec<AccountId> coldkeys:Vec<AccountId> {_BY_UID} "
        "emission_history:Vec<Vec<Compact<AlphaBalance>>>",
    ),
    "DynamicInfo": struct(
        f"{RPC}::dynamic_info::DynamicInfo",
        "netuid:Compact<NetUid> owner_hotkey:AccountId owner_coldkey:AccountId subnet_name:Vec<Compact<u8>> "
        "token_symbol:Vec<Compact<u8>> tempo:Compact<u16> last_step:Compact<u64> blocks_since_last_step:Compact<u64> "
        f"emission:Compact<u64> {_POOL} network_registered_at:Compact<u64> subnet_identity:Option<SubnetIdentity> "
        "moving_price:I96F32",
    ),
    "HyperparamValue": enum(
        f"{RPC}::subnet_info::HyperparamValue",
        "Bool _:bool",
        "U16 _:Compact<u16>",
        "U32 _:Compact<u32>",
        "U64 _:Compact<u64>",
        "U128 _:Compact<u128>",
        "TaoBalance _:Compact<TaoBalance>",
        "I32F32 _:I32F32",
        "U64F64 _:U64F64",
    ),
    "HyperparamEntry": struct(f"{RPC}::subnet_info::HyperparamEntry", "name:Vec<u8> value:HyperparamValue"),
    "StakeInfo": struct(
        f"{RPC}::stake_info::StakeInfo",
        f"{PERSON} netuid:Compact<NetUid> stake:Compact<AlphaBalance> locked:Compact<u64> "
        "emission:Compact<AlphaBalance> tao_emission:Compact<TaoBalance> drain:Compact<u64> is_registered:bool",
    ),
    "StakeAvailability": struct(
        "pallet_subtensor::staking::lock::StakeAvailability",
        "total:Compact<AlphaBalance> locked:Compact<AlphaBalance> available:Compact<AlphaBalance>",
    ),
    "StakeAvailabilityBySubnet": newtype("BTreeMap", "Vec<(NetUid,StakeAvailability)>"),
    "StakeAvailabilities": newtype("BTreeMap", "Vec<(AccountId,StakeAvailabilityBySubnet)>"),
    "DelegateInfo": struct(
        f"{RPC}::delegate_info::DelegateInfo",
        "delegate_ss58:AccountId take:Compact<PerU16> "
        "nominators:Vec<(AccountId,Vec<(Compact<NetUid>,Compact<u64>)>)> owner_ss58:AccountId "
        "registrations:Vec<Compact<NetUid>> validator_permits:Vec<Compact<NetUid>> return_per_1000:Compact<u64> "
        "total_daily_return:Compact<u64>",
    ),
    "RuntimeDispatchInfo": struct(
        "pallet_transaction_payment::types::RuntimeDispatchInfo",
        "weight:Weight class:DispatchClass partial_fee:TaoBalance",
    ),
    "SubnetPrice": struct("subtensor_swap_runtime_api::SubnetPrice", "netuid:NetUid price:u64"),
    "SimSwap": struct(
        "subtensor_swap_runtime_api::SimSwapResult",
        "tao_amount:TaoBalance alpha_amount:AlphaBalance tao_fee:TaoBalance alpha_fee:AlphaBalance "
        "tao_slippage:TaoBalance alpha_slippage:AlphaBalance",
    ),
    "BasketPosition": struct(
        f"{RPC}::basket_info::BasketPosition",
        "hotkey:AccountId beta:u64 beta_total:u64 nav_tao:TaoBalance value_tao:TaoBalance spot_value_tao:TaoBalance",
    ),
}

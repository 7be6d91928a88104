"""Runtime APIs: what a client may ask for in one call.

Law: a method is listed when `node` answers it. Root baskets do not exist here; their methods answer "none".
"""

from __future__ import annotations

from subnet.chain.local.spec.shapes import Api, Method, fields

_TABLE: dict[str, tuple[tuple[str, str, str], ...]] = {
    "Metadata": (
        ("metadata_at_version", "version:u32", "Option<OpaqueMetadata>"),
        ("metadata_versions", "", "Vec<u32>"),
    ),
    "AccountNonceApi": (("account_nonce", "account:AccountId", "u32"),),
    "TransactionPaymentApi": (("query_info", "uxt:Uxt len:u32", "RuntimeDispatchInfo"),),
    "NeuronInfoRuntimeApi": (
        ("get_neurons", "netuid:NetUid", "Vec<NeuronInfo>"),
        ("get_neuron", "netuid:NetUid uid:u16", "Option<NeuronInfo>"),
        ("get_neurons_lite", "netuid:NetUid", "Vec<NeuronInfoLite>"),
        ("get_neuron_lite", "netuid:NetUid uid:u16", "Option<NeuronInfoLite>"),
    ),
    "SubnetInfoRuntimeApi": (
        ("get_metagraph", "netuid:NetUid", "Option<Metagraph>"),
        ("get_all_metagraphs", "", "Vec<Option<Metagraph>>"),
        ("get_subnet_state", "netuid:NetUid", "Option<SubnetState>"),
        ("get_dynamic_info", "netuid:NetUid", "Option<DynamicInfo>"),
        ("get_all_dynamic_info", "", "Vec<Option<DynamicInfo>>"),
        ("get_subnet_hyperparams_v3", "netuid:NetUid", "Option<Vec<HyperparamEntry>>"),
        ("get_next_epoch_start_block", "netuid:NetUid", "Option<u64>"),
        ("get_subnet_to_prune", "", "Option<NetUid>"),
        ("get_block_emission", "", "TaoBalance"),
        ("get_coldkey_auto_stake_hotkey", "coldkey:AccountId netuid:NetUid", "Option<AccountId>"),
    ),
    "DelegateInfoRuntimeApi": (
        ("get_delegates", "", "Vec<DelegateInfo>"),
        ("get_delegate", "delegate_account:AccountId", "Option<DelegateInfo>"),
        (
            "get_delegated",
            "delegatee_account:AccountId",
            "Vec<(DelegateInfo,(Compact<NetUid>,Compact<AlphaBalance>))>",
        ),
    ),
    "StakeInfoRuntimeApi": (
        ("get_stake_info_for_coldkey", "coldkey_account:AccountId", "Vec<StakeInfo>"),
        (
            "get_stake_info_for_coldkeys",
            "coldkey_accounts:Vec<AccountId>",
            "Vec<(AccountId,Vec<StakeInfo>)>",
        ),
        (
            "get_stake_info_for_hotkey_coldkey_netuid",
            "hotkey_account:AccountId coldkey_account:AccountId netuid:NetUid",
            "Option<StakeInfo>",
        ),
        (
            "get_stake_availability_for_coldkeys",
            "coldkey_accounts:Vec<AccountId> netuids:Option<Vec<NetUid>>",
            "StakeAvailabilities",
        ),
        (
            "get_stake_fee",
            "origin:Option<(AccountId,NetUid)> origin_coldkey_account:AccountId "
            "destination:Option<(AccountId,NetUid)> destination_coldkey_account:AccountId amount:u64",
            "u64",
        ),
        ("get_coldkey_lock", "coldkey:AccountId netuid:NetUid", "Option<LockState>"),
        ("get_hotkey_conviction", "hotkey:AccountId netuid:NetUid", "U64F64"),
        ("get_most_convicted_hotkey_on_subnet", "netuid:NetUid", "Option<AccountId>"),
    ),
    "SubnetRegistrationRuntimeApi": (("get_network_registration_cost", "", "TaoBalance"),),
    "BetaBasketRuntimeApi": (
        ("get_root_basket_owed", "coldkey:AccountId", "TaoBalance"),
        ("get_root_basket_total_nav", "", "TaoBalance"),
        ("get_root_basket_positions", "coldkey:AccountId", "Vec<(AccountId,u64,TaoBalance)>"),
        ("get_root_basket_portfolio", "coldkey:AccountId", "Vec<BasketPosition>"),
        ("get_basket_position", "hotkey:AccountId coldkey:AccountId", "Option<BasketPosition>"),
        ("get_basket_payout", "hotkey:AccountId coldkey:AccountId", "TaoBalance"),
        ("get_validator_basket_nav", "hotkey:AccountId", "TaoBalance"),
        ("get_validator_basket", "hotkey:AccountId", "Vec<(NetUid,AlphaBalance,TaoBalance)>"),
    ),
    "SwapRuntimeApi": (
        ("current_alpha_price", "netuid:NetUid", "u64"),
        ("current_alpha_price_all", "", "Vec<SubnetPrice>"),
        ("sim_swap_tao_for_alpha", "netuid:NetUid tao:TaoBalance", "SimSwap"),
        ("sim_swap_alpha_for_tao", "netuid:NetUid alpha:AlphaBalance", "SimSwap"),
    ),
}

APIS: tuple[Api, ...] = tuple(
    Api(name, tuple(Method(method, fields(inputs), output) for method, inputs, output in methods))
    for name, methods in _TABLE.items()
)

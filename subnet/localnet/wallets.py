"""Wallets of a local run: keys without passwords, worth nothing, below the run folder.

Law: made once and found again, so a resumed run has the same identities. Never for a real network: nothing here
protects a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import bittensor as bt

from subnet.errors import ConfigError
from subnet.protocol.ids import Hotkey


def opened(folder: Path, name: str) -> bt.Wallet:
    """A wallet below `folder` whose coldkey has no password."""
    return bt.Wallet(name=name, hotkey="default", path=str(folder))


def ensure(folder: Path, name: str, hotkeys: Sequence[str]) -> dict[str, Hotkey]:
    """Hotkey name → address of a wallet below `folder`, created where missing. Raises ConfigError."""
    addresses = {}
    try:
        for hotkey in hotkeys:
            wallet = bt.Wallet(name=name, hotkey=hotkey, path=str(folder))
            if not (folder / name / "coldkey").exists():
                wallet.create_new_coldkey(use_password=False, suppress=True)
            if not (folder / name / "hotkeys" / hotkey).exists():
                wallet.create_new_hotkey(suppress=True)
            addresses[hotkey] = Hotkey(wallet.hotkey.ss58_address)
    except OSError as error:
        raise ConfigError("--run-dir", f"{folder} cannot be written ({error})", "name a writable folder") from error
    return addresses

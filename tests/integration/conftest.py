"""What holds for all tests with real processes: nobody's own settings or proxies reach them."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def no_settings_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's BT_NETWORK, journal or proxy would send the children elsewhere."""
    for name in [name for name in os.environ if name.startswith(("IOTA_", "BT_"))]:
        monkeypatch.delenv(name)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")

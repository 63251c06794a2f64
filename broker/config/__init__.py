"""The server's settings: environment > TOML file > default, checked once, when a process starts.

A setting ``store.bucket`` is ``bucket`` in the table ``[store]`` of the TOML file that ``BROKER_CONFIG``
names, or the variable ``BROKER_STORE__BUCKET``. This is the only package of the server that reads the
environment. ``docs/operations/configuration.md`` lists every setting; a test compares the two.
"""

from __future__ import annotations

from broker.config.parts import KEY_NAMES, LOOPBACK, KeySettings, StoreSettings, VaultSettings
from broker.config.production import MIN_SECRET, Facts, Refusal, check_production, find_refusals
from broker.config.settings import CONFIG_VARIABLE, PREFIX, Settings, load_settings

__all__ = [
    "CONFIG_VARIABLE",
    "KEY_NAMES",
    "LOOPBACK",
    "MIN_SECRET",
    "PREFIX",
    "Facts",
    "KeySettings",
    "Refusal",
    "Settings",
    "StoreSettings",
    "VaultSettings",
    "check_production",
    "find_refusals",
    "load_settings",
]

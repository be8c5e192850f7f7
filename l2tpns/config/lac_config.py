"""The configuration as it is for one LAC: its profile's values, else those of the server."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any, cast

from l2tpns.config.lac_profile import LacProfile
from l2tpns.config.settings import Config


class LacConfig:
    """The configuration as it is for the LACs of a profile: the profile's values, else the server's present ones.

    What Config derives from variables is derived from these.
    """

    __slots__ = ("_config", "_profile")

    def __init__(self, config: Config, profile: LacProfile) -> None:
        self._config = config
        self._profile = profile

    def __getattr__(self, name: str) -> Any:
        values = self._profile.values
        if name in values:
            return values[name]
        derived = getattr(type(self._config), name, None)
        if isinstance(derived, property) and derived.fget is not None:
            return derived.fget(self)
        return getattr(self._config, name)


def choose(config: Config, address: str, host: str) -> tuple[str, Config]:
    """Return the name of the profile of a LAC, "" for none, and the configuration that counts for it."""
    if not config.lacs:
        return "", config
    number = IPv4Address(address)
    ranked = [(rank, profile) for profile in config.lacs.values() if (rank := profile.rank(number, host)) is not None]
    if not ranked:
        return "", config
    _, best = max(ranked, key=lambda each: each[0])  # the first of equal ones
    return best.name, cast(Config, LacConfig(config, best))

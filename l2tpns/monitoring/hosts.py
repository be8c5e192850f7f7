"""Checks that an HTTP request names this server and was not made by another web page.

A page of attacker.example that is open in an operator's browser can make its own name resolve to this server (DNS
rebinding) and then read the replies as its own. The Host header reveals this, because it contains the page's name; an
address in it cannot be rebound. A page can also send cross-origin requests. It cannot read the replies, but making them
takes time, so they are refused (Origin: RFC 6454; Sec-Fetch-Site: W3C Fetch Metadata).
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from typing import Any

from l2tpns.config.settings import Config

MISDIRECTED = "421 Misdirected Request"
FORBIDDEN = "403 Forbidden"
FOREIGN_PAGE = "Requests made by other web pages are not answered."


class RequestCheck:
    """Checks requests. Reads the configuration each time, so that a change takes effect at once."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def refusal(self, environ: Mapping[str, Any]) -> tuple[str, str] | None:
        """Return the status and reason of a refusal, or None if the request may be answered."""
        host = environ.get("HTTP_HOST", "")
        if host and not self._known(host):  # browsers always send one
            return MISDIRECTED, (
                "This server answers to its address, to localhost and to its own name; "
                "other names must be listed in metrics_allowed_hosts."
            )
        origin = environ.get("HTTP_ORIGIN", "")
        if origin and not self._own_origin(origin, host):
            return FORBIDDEN, FOREIGN_PAGE
        # Links from other pages are harmless: a page cannot read what the browser navigates to.
        site, mode = environ.get("HTTP_SEC_FETCH_SITE", ""), environ.get("HTTP_SEC_FETCH_MODE", "")
        if site == "cross-site" and mode != "navigate":
            return FORBIDDEN, FOREIGN_PAGE
        return None

    def _known(self, host: str) -> bool:
        name = _name(host)
        try:
            ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            return bool(name) and name in self._names()
        return True

    def _names(self) -> set[str]:
        config = self._config
        names = ("localhost", config.hostname, socket.gethostname(), *config.metrics_hosts)
        return {_name(name) for name in names}

    def _own_origin(self, origin: str, host: str) -> bool:
        """Return True if the origin is this server, or a proxy in front of it whose name is listed."""
        scheme, separator, authority = origin.partition("://")
        if scheme.lower() not in ("http", "https") or not separator:
            return False
        if authority.lower() == host.lower():
            return True
        return _name(authority) in {_name(name) for name in self._config.metrics_hosts}


def _name(host: str) -> str:
    """Return the host of `host:port`, normalised for comparison."""
    name, colon, port = host.rpartition(":")
    if not colon or not port.isdigit():
        name = host
    return name.lower().removesuffix(".")

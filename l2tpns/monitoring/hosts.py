"""Which requests are answered: those that name this server, and do not come out of a foreign web page.

A page of attacker.example, open in an operator's browser, may have its own name point here (DNS rebinding) and then
read what it likes as its own: but the browser says in the Host header which name the page has. An address in that
header is never rebound. A page may also ask across origins; it cannot read the answer, but it need not be made either
(Origin: RFC 6454; Sec-Fetch-Site: W3C Fetch Metadata).
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
    """Reads the configuration at each request: a change takes effect at once."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def refusal(self, environ: Mapping[str, Any]) -> tuple[str, str] | None:
        """Status and reason in words; None: the request may be answered."""
        host = environ.get("HTTP_HOST", "")
        if host and not self._known(host):  # without one it is no browser
            return MISDIRECTED, (
                "This server answers to its address, to localhost and to its own name; "
                "other names must be listed in metrics_allowed_hosts."
            )
        origin = environ.get("HTTP_ORIGIN", "")
        if origin and not self._own_origin(origin, host):
            return FORBIDDEN, FOREIGN_PAGE
        # Links from other pages are harmless: no page sees what another one shows.
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
        """A proxy before us may speak TLS, and have a name of its own that is listed."""
        scheme, separator, authority = origin.partition("://")
        if scheme.lower() not in ("http", "https") or not separator:
            return False
        if authority.lower() == host.lower():
            return True
        return _name(authority) in {_name(name) for name in self._config.metrics_hosts}


def _name(host: str) -> str:
    """The host of `host:port`, in the form in which names are compared."""
    name, colon, port = host.rpartition(":")
    if not colon or not port.isdigit():
        name = host
    return name.lower().removesuffix(".")

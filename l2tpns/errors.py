"""The errors of l2tpns, one tree, named by who must act on them.

A peer's mistake carries the reply that the RFC asks for, so that one place can send it.
"""

from __future__ import annotations


class L2tpnsError(Exception):
    """Anything that l2tpns raises on purpose."""


class WireError(L2tpnsError):
    """Octets that cannot be read as a packet: count and drop (RFC 2661 section 7.1)."""


class ProtocolError(L2tpnsError):
    """Well formed, not allowed here or now: answered with StopCCN or CDN.

    `result_code` and `error_code` are those of the Result Code AVP (RFC 2661 section 4.4.2), `text` its message.
    """

    def __init__(self, result_code: int, error_code: int = 0, text: str = "") -> None:
        super().__init__(text or f"result {result_code}, error {error_code}")
        self.result_code = result_code
        self.error_code = error_code
        self.text = text


class ConfigError(L2tpnsError):
    """The operator's words: the message is shown as it is and names file, line and variable."""


class PluginError(L2tpnsError):
    """A plugin cannot be had, or asked for what cannot be done: in words for the operator."""


class NoAnswer(L2tpnsError):
    """Every server that could have answered kept silent."""


class PassedOver(NoAnswer):
    """No server answered this. After so many tries a server answered others; after `unsure` tries it has not yet."""

    def __init__(self, text: str, tries: int, unsure: int) -> None:
        super().__init__(text)
        self.tries = tries
        self.unsure = unsure


class NoAddress(L2tpnsError):
    """The pool has no free address for this subscriber."""

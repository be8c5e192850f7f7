"""The errors of l2tpns, one tree, named by who must act on them.

A peer's mistake carries the reply that the RFC asks for, so that one place can send it.
"""

from __future__ import annotations

import errno


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
    """Edit the file: the message is shown as it is and names file, line and variable.

    `status` is the exit status of a start that fails by it (sysexits.h). After that of this class, and of no other,
    systemd does not start the server again: until the file is edited a restart would not help.
    """

    status = 78  # EX_CONFIG


class WaitError(ConfigError):
    """Wait: time may mend what the file is right to ask for. An address that comes later, a port or a device that is
    another's, a disk that is full or read-only, no free descriptor."""

    status = 75  # EX_TEMPFAIL


class RepairError(ConfigError):
    """Repair the machine: a device node, a directory or a permission is missing there. Nothing is to be edited."""

    status = 71  # EX_OSERR


class ReportError(L2tpnsError):
    """Report it: a mistake of ours, which a process that begins anew may not make."""

    status = 70  # EX_SOFTWARE


class PluginError(L2tpnsError):
    """A plugin cannot be had, or asked for what cannot be done: in words for the operator."""


class NoAnswer(L2tpnsError):
    """Every server that could have answered kept silent."""


class PassedOver(NoAnswer):
    """No server answered this request. `tries`: tries after which a server answered others; `unsure`: none did yet."""

    def __init__(self, text: str, tries: int, unsure: int) -> None:
        super().__init__(text)
        self.tries = tries
        self.unsure = unsure


class NoAddress(L2tpnsError):
    """The pool has no free address for this subscriber."""


# What of the machine's refusals means that a path or a value in the file is wrong, and what that the machine is not as
# it should be. All others pass: better to be started once too often than never again.
_TO_EDIT = frozenset((errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL))
_TO_REPAIR = frozenset(
    (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ENOSYS, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)
)


def refused(code: int | None, text: str) -> ConfigError:
    """What the operator has to do about an errno of the machine's, with these words."""
    if code in _TO_EDIT:
        return ConfigError(text)
    return RepairError(text) if code in _TO_REPAIR else WaitError(text)

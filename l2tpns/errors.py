"""The errors of l2tpns: one tree, named by what has to be done about them.

A protocol error of a peer carries the reply that the RFC demands, so that it can be sent in one place.
"""

from __future__ import annotations

import errno


class L2tpnsError(Exception):
    """Anything that l2tpns raises on purpose."""


class WireError(L2tpnsError):
    """Octets cannot be decoded as a packet: count and drop them (RFC 2661 7.1)."""


class ProtocolError(L2tpnsError):
    """A well-formed message is not allowed here or now: answer with StopCCN or CDN.

    `result_code`, `error_code` and `text` are the fields of the Result Code AVP (RFC 2661 4.4.2).
    """

    def __init__(self, result_code: int, error_code: int = 0, text: str = "") -> None:
        super().__init__(text or f"result {result_code}, error {error_code}")
        self.result_code = result_code
        self.error_code = error_code
        self.text = text


class ConfigError(L2tpnsError):
    """The operator must edit the configuration. The text names file, line and variable, and is shown as it is.

    `status` is the exit status of a start that fails with this error (sysexits.h). After the status of this class, and
    of no other, systemd does not restart the server: a restart would not help before the file is edited.
    """

    status = 78  # EX_CONFIG


class WaitError(ConfigError):
    """The operator may wait: the configuration is right, and the cause may pass by itself.

    An address that comes later, a port or device in use, a full or read-only disk, no free descriptor.
    """

    status = 75  # EX_TEMPFAIL


class RepairError(ConfigError):
    """The operator must repair the machine: a device node, a directory or a permission is missing."""

    status = 71  # EX_OSERR


class ReportError(L2tpnsError):
    """A bug of ours, to be reported. A new process may not run into it."""

    status = 70  # EX_SOFTWARE


class PluginError(L2tpnsError):
    """A plugin cannot be loaded, or requests something impossible. The text is for the operator."""


class NoAnswer(L2tpnsError):
    """No server has answered."""


class PassedOver(NoAnswer):
    """No server has answered this record.

    A server answered others after `tries` attempts; after `unsure` attempts it has not answered anything yet.
    """

    def __init__(self, text: str, tries: int, unsure: int) -> None:
        super().__init__(text)
        self.tries = tries
        self.unsure = unsure


class NoAddress(L2tpnsError):
    """The pool has no free address for this subscriber."""


# Errno values that mean a wrong path or value in the file, and those that mean a fault of the machine. All others may
# pass by themselves: one restart too many is better than none.
_TO_EDIT = frozenset((errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL))
_TO_REPAIR = frozenset(
    (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ENOSYS, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)
)


def refused(code: int | None, text: str) -> ConfigError:
    """Return the error for an errno, by what the operator has to do about it."""
    if code in _TO_EDIT:
        return ConfigError(text)
    return RepairError(text) if code in _TO_REPAIR else WaitError(text)

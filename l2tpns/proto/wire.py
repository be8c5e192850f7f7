"""A bounded cursor over received octets, for decoders of any protocol.

It never reads past its end, and `done` reports octets that are left over.
"""

from __future__ import annotations

from l2tpns.errors import WireError


class Cursor:
    """Reads big-endian fields from `octets[start:end]`. All methods raise WireError if too few octets are left."""

    __slots__ = ("_end", "_octets", "position")

    def __init__(self, octets: bytes, start: int = 0, end: int | None = None) -> None:
        last = len(octets) if end is None else end
        if not 0 <= start <= last <= len(octets):
            raise WireError(f"no octets {start} to {last} among {len(octets)}")
        self._octets = octets
        self._end = last
        self.position = start

    @property
    def left(self) -> int:
        """The number of unread octets."""
        return self._end - self.position

    def take(self, count: int) -> bytes:
        """Return the next `count` octets."""
        after = self.position + count
        if count < 0 or after > self._end:
            raise WireError(f"{count} octets wanted, {self.left} left")
        taken = self._octets[self.position : after]
        self.position = after
        return taken

    def u8(self) -> int:
        """Return the next octet as a number."""
        return int.from_bytes(self.take(1), "big")

    def u16(self) -> int:
        """Return the next two octets as a number."""
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        """Return the next four octets as a number."""
        return int.from_bytes(self.take(4), "big")

    def rest(self) -> bytes:
        """Return all octets that are left."""
        return self.take(self.left)

    def done(self) -> None:
        """Raises WireError if any octets are left."""
        if self.left:
            raise WireError(f"{self.left} octets left over")

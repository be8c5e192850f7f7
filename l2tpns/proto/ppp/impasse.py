"""Why a negotiation of PPP options was given up (RFC 1661 4.6), for causes and log lines."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Impasse:
    """Why a negotiation cannot converge: what the peer insists on, and what it was offered."""

    types: frozenset[int]  # of the options that are in dispute
    insists: tuple[str, ...]
    offered: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()  # what the peer must ask for and never did

    def words(self, peer: str) -> str:
        """Return a sentence about the peer, which is called `peer` in it."""
        parts = []
        if self.insists:
            parts.append(f"insists on {', '.join(self.insists)}")
        elif self.missing:
            parts.append(f"asks for no {', '.join(self.missing)}")
        if self.offered:
            parts.append(f"was offered {', '.join(self.offered)}")
        return f"{peer} " + " and ".join(parts)

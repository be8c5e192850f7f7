"""Which user names are equal: RADIUS compares octets (RFC 2865 5.1), operators expect Fred and fred to be one user.

Only the case of ASCII letters is ignored. Unicode has symbols whose lower case is an ASCII letter (U+212A KELVIN SIGN),
and strings that it holds equal and a RADIUS server does not.
"""

from __future__ import annotations

from string import ascii_lowercase, ascii_uppercase

_FOLDED = str.maketrans(ascii_uppercase, ascii_lowercase)


def fold(name: str) -> str:
    """Return the name with its ASCII letters in lower case, and all others as they are."""
    return name.lower() if name.isascii() else name.translate(_FOLDED)

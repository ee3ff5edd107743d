"""Parses and formats memory sizes."""

from __future__ import annotations

import re

from retrievo.support.errors import UsageError


def bytes_of(flag: str, text: str) -> int:
    """Parses 0 or a size such as 512MB, 4GB or 1.5g into bytes; units are powers of 1,024.

    Raises: UsageError, which names the flag, for anything else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt])i?b?", text.strip().lower())
    if match:
        return int(float(match[1]) * 1024 ** (1 + "kmgt".index(match[2])))
    if text.strip() == "0":
        return 0
    raise UsageError(flag, f"found '{text}'", "a number and MB, GB or TB", "write 4GB")


def format_size(size: int) -> str:
    """Formats a number of bytes for a person: 512 B, 3.4 MB, 13.5 GB; units are powers of 1,024."""
    amount, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:,.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"

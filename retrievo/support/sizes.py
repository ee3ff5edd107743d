"""Sizes of memory as people write them."""

from __future__ import annotations

import re

from retrievo.support.errors import UsageError


def bytes_of(flag: str, text: str) -> int:
    """Bytes of 0 or of a size such as 512MB, 4GB or 1.5g, in units of 1,024.

    Raises: UsageError, which names the flag, for anything else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt])i?b?", text.strip().lower())
    if match:
        return int(float(match[1]) * 1024 ** (1 + "kmgt".index(match[2])))
    if text.strip() == "0":
        return 0
    raise UsageError(flag, f"found '{text}'", "a number and MB, GB or TB", "write 4GB")

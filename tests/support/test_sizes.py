"""Sizes are read as people write them."""

from __future__ import annotations

import pytest

from retrievo.support.errors import UsageError
from retrievo.support.sizes import bytes_of


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("512MB", 512 << 20), ("4GB", 4 << 30), ("1.5g", 3 << 29), (" 2 GiB", 2 << 30)]
)
def test_sizes_are_in_units_of_1024(text: str, size: int) -> None:
    assert bytes_of("--memory", text) == size


@pytest.mark.parametrize("text", ["", "4", "4 pounds", "-1GB", "GB", "1,5GB"])
def test_anything_else_names_the_flag(text: str) -> None:
    with pytest.raises(UsageError, match=r"--memory: found .*write 4GB"):
        bytes_of("--memory", text)

"""What people hand to the library becomes the package's own tables."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
import pyarrow as pa
import pytest

from retrievo.data.given import has_ids, text_table
from retrievo.data.tables import QUERIES

TEXTS = ["one", "two"]
TABLE = {"id": ["a", "b"], "text": TEXTS}


def generated() -> Iterator[str]:
    yield from TEXTS


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        (TEXTS, None),
        (generated(), None),
        (pa.array(TEXTS), None),
        (pd.Series(TEXTS, index=["x", "y"]), None),
        (pd.DataFrame(TABLE)["text"], None),
        ({"a": "one", "b": "two"}, ["a", "b"]),
        (pa.table(TABLE), ["a", "b"]),
        (pd.DataFrame(TABLE), ["a", "b"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_texts_have_the_ids_of_a_table_or_dict_and_those_of_a_column_count_from_0(given, ids) -> None:
    assert has_ids(given) == (ids is not None)
    table = text_table(given, QUERIES, "search()")
    assert table.column("text").to_pylist() == TEXTS
    assert table.column("id").to_pylist() == (ids or ["0", "1"])

"""The id map answers as a dictionary does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrievo.data.ids import IdMap, hash_texts
from retrievo.data.tables import CORPUS, Table
from retrievo.support.errors import RetrievoError

REUSED = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def table(path: Path, ids: list[str]) -> Table:
    pq.write_table(pa.table({"id": pa.array(ids, pa.string()), "text": ids}), path)
    return Table(path, CORPUS)


@REUSED
@given(
    ids=st.lists(st.text(min_size=1, max_size=6), unique=True, min_size=1, max_size=20),
    others=st.lists(st.text(max_size=6), max_size=10),
)
def test_each_id_has_its_row_and_each_row_its_id(ids: list[str], others: list[str], tmp_path: Path) -> None:
    known = IdMap(table(tmp_path / "corpus.parquet", ids))
    asked = [*others, *reversed(ids), *others]
    row_of = {name: row for row, name in enumerate(ids)}
    assert known.rows(asked).tolist() == [row_of.get(name, -1) for name in asked]
    assert known.ids[np.arange(len(ids))] == ids
    assert len(known) == len(ids)


def test_an_id_that_stands_there_twice_is_named_with_both_rows(tmp_path: Path) -> None:
    with pytest.raises(RetrievoError, match=r"id 'b' occurs twice \(rows 2 and 4\)"):
        IdMap(table(tmp_path / "corpus.parquet", ["a", "b", "c", "b"]))


def test_the_hash_of_a_text_never_changes() -> None:
    """Caches and the ids of imported passages are made of it."""
    assert hash_texts(["", "d1", "é"]).tolist() == [13020603013274838756, 2878387810984711164, 3394012004367669963]

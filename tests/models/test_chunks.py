"""Cutting by token budget and padding."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from retrievo.models.chunks import cut_chunks, pad

lengths_lists = st.lists(st.integers(0, 300), max_size=80)
budgets = st.integers(1, 2000)


@given(lengths_lists, budgets)
def test_every_row_is_in_one_chunk(lengths, budget):
    chunks = cut_chunks(lengths, budget)
    rows = np.concatenate(chunks) if chunks else np.array([], dtype=int)
    assert sorted(rows.tolist()) == list(range(len(lengths)))


@given(lengths_lists, budgets)
def test_a_chunk_keeps_to_the_budget_unless_it_is_one_row(lengths, budget):
    for rows in cut_chunks(lengths, budget):
        assert len(rows) == 1 or len(rows) * max(lengths[row] for row in rows) <= budget or max(lengths) == 0


@given(lengths_lists, budgets)
def test_chunks_go_from_long_to_short_and_keep_the_order_of_equals(lengths, budget):
    chunks = cut_chunks(lengths, budget)
    order = [row for rows in chunks for row in rows]
    assert order == sorted(range(len(lengths)), key=lambda row: -lengths[row])


def test_chunks_of_one_length_carry_no_padding():
    chunks = cut_chunks([10] * 7, 30)
    assert [rows.tolist() for rows in chunks] == [[0, 1, 2], [3, 4, 5], [6]]


@given(st.lists(st.lists(st.integers(1, 99), max_size=6), min_size=1, max_size=8), st.data())
def test_padded_rows_hold_their_tokens_then_padding(sequences, data):
    rows = data.draw(st.lists(st.integers(0, len(sequences) - 1), min_size=1, max_size=8))
    tokens = np.array([token for sequence in sequences for token in sequence], dtype=np.int32)
    offsets = np.cumsum([0, *map(len, sequences)])
    input_ids, mask = pad(tokens, offsets, rows, pad_id=-7)
    longest = max(1, *(len(sequences[row]) for row in rows))  # no model computes rows of no width
    assert input_ids.shape == mask.shape == (len(rows), longest)
    assert input_ids.dtype == mask.dtype == np.int64
    for row, ids, kept in zip(rows, input_ids, mask, strict=True):
        missing = longest - len(sequences[row])
        assert ids.tolist() == sequences[row] + [-7] * missing
        assert kept.tolist() == [1] * len(sequences[row]) + [0] * missing


def test_tensors_are_padded_as_arrays_are():
    tokens, offsets = torch.arange(6), torch.tensor([0, 2, 6])
    input_ids, _ = pad(tokens, offsets, torch.tensor([1, 0]), 0)
    assert input_ids.tolist() == [[2, 3, 4, 5], [0, 1, 0, 0]]

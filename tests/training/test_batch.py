"""A batch crosses process borders and holds no padding."""

from __future__ import annotations

import pickle

import torch

from retrievo.training.batch import Batch, Relevant, Rows


def test_rows_know_their_size_and_lengths() -> None:
    rows = Rows(torch.arange(6), torch.tensor([0, 2, 2, 6]))
    assert rows.size == 3
    assert rows.lengths.tolist() == [2, 0, 4]


def test_a_batch_survives_pickling() -> None:
    rows = Rows(torch.arange(3), torch.tensor([0, 1, 3]))
    relevant = Relevant(torch.tensor([4]), torch.tensor([5]), torch.tensor([0, 1]))
    batch = Batch(rows={"query": rows}, counts={"pairs": 1}, relevant=relevant)
    copy = pickle.loads(pickle.dumps(batch))
    assert torch.equal(copy.rows["query"].tokens, rows.tokens)
    assert torch.equal(copy.relevant.hashes, relevant.hashes)
    assert copy.counts == {"pairs": 1}


def test_moving_a_batch_keeps_token_ids_where_chunks_are_padded() -> None:
    batch = Batch(
        rows={"query": Rows(torch.arange(3), torch.tensor([0, 1, 3]))},
        counts={"pairs": 1},
        ids={"document": torch.tensor([1])},
        relevant=Relevant(torch.tensor([4]), torch.tensor([5]), torch.tensor([0, 1])),
    ).to(torch.device("meta"))
    assert batch.rows["query"].tokens.device.type == "cpu"
    assert batch.ids["document"].device.type == batch.relevant.ids.device.type == "meta"

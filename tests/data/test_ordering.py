"""The ordering rule and exact scores: what makes a run independent of shards, batches and the order of rows."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrievo.data import ordering
from retrievo.data.ordering import (
    exact_cosines,
    exact_scores,
    exact_similarities,
    first_ranked,
    flat_strings,
    ranked,
    ranks,
    repeated,
)
from retrievo.support.errors import RetrievoError

IDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SCORES = st.sampled_from([-1.5, -0.0, 0.0, 1e-45, 0.1, 0.1 + 1e-12, 3.0, 1e30]) | st.floats(
    width=32, allow_nan=False, allow_infinity=False
)
ROWS = st.lists(st.tuples(st.integers(0, 3), SCORES, IDS), max_size=40)


def columns(rows: list[tuple[int, float, str]]) -> tuple[np.ndarray, np.ndarray, pa.Array]:
    group, score, doc_id = zip(*rows, strict=True) if rows else ((), (), ())
    return np.array(group, np.int32), np.array(score, np.float32), pa.array(doc_id, pa.string())


def in_order(rows: list[tuple[int, float, str]]) -> list[tuple[int, float, str]]:
    """The rule, said in plain Python."""
    by_id = sorted(rows, key=lambda row: row[2].encode(), reverse=True)
    return sorted(by_id, key=lambda row: (row[0], -np.float32(row[1])))


class TestRanked:
    @settings(deadline=None)
    @given(ROWS)
    def test_order_is_group_then_float32_score_descending_then_id_bytes_descending(self, rows):
        order = ranked(*columns(rows))
        assert sorted(order) == list(range(len(rows)))
        expected = [(group, np.float32(score), doc_id) for group, score, doc_id in in_order(rows)]
        assert [(rows[i][0], np.float32(rows[i][1]), rows[i][2]) for i in order] == expected

    def test_ties_are_broken_by_doc_id_descending(self):
        order = ranked(np.zeros(4, np.int64), np.ones(4, np.float32), pa.array(["d1", "d10", "d9", "d2"]))
        assert order.tolist() == [2, 3, 1, 0]

    def test_ids_are_compared_by_utf8_bytes_and_not_by_utf16_units(self):
        ids = ["z", "é", "\uffff", "\U0001f600"]  # ascending in UTF-8; UTF-16 puts the last before \uffff
        assert ranked(np.zeros(4, np.int64), np.ones(4, np.float32), pa.array(ids)).tolist() == [3, 2, 1, 0]

    def test_scores_that_are_equal_as_float32_tie(self):
        scores = np.array([1.0 + 1e-9, 1.0], np.float64)
        assert ranked(np.zeros(2, np.int64), scores, pa.array(["a", "b"])).tolist() == [1, 0]

    def test_minus_zero_ties_with_zero(self):
        assert ranked(np.zeros(2, np.int64), np.array([0.0, -0.0], np.float32), pa.array(["a", "b"])).tolist() == [1, 0]

    def test_rows_in_order_stay_where_they_are(self):
        group, score = np.repeat([0, 1], 3), np.array([3, 2, 2, 9, 9, 9], np.float32)
        assert ranked(group, score, pa.array(["a", "c", "b", "z", "y", "x"])).tolist() == list(range(6))

    @settings(deadline=None)
    @given(ROWS, st.integers(1, 7))
    def test_chunks_types_and_slices_of_the_ids_do_not_matter(self, rows, size):
        group, score, doc_id = columns(rows)
        expected = ranked(group, score, doc_id).tolist()
        chunks = pa.chunked_array([doc_id[i : i + size] for i in range(0, len(doc_id), size)], doc_id.type)
        sliced = pa.concat_arrays([pa.array(["x", "yy"]), doc_id]).slice(2)
        for ids in (chunks, sliced, doc_id.cast(pa.large_string()), doc_id.cast(pa.string_view())):
            assert ranked(group, score, ids).tolist() == expected

    @pytest.mark.parametrize("score", [np.nan, np.inf, -np.inf])
    def test_a_score_that_is_not_finite_is_an_error_with_its_row_and_document(self, score):
        with pytest.raises(RetrievoError, match=r"row 1, document 'b': score -?(nan|inf); expected a finite number"):
            ranked(np.zeros(2, np.int64), np.array([1, score], np.float32), pa.array(["a", "b"]))

    @pytest.mark.parametrize("code", [-1, 1 << 32])
    def test_group_codes_outside_32_bits_are_refused(self, code):
        with pytest.raises(ValueError, match="group codes"):
            ranked(np.array([code]), np.ones(1, np.float32), pa.array(["a"]))


class TestRanks:
    def test_ranks_start_from_one_in_every_group(self):
        assert ranks(np.array([0, 0, 0, 2, 5, 5])).tolist() == [1, 2, 3, 1, 1, 2]
        assert ranks(np.array([], np.int32)).tolist() == []
        assert ranks(np.array([4], np.uint8)).dtype == np.int32


class TestRepeated:
    @settings(deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 2), IDS), max_size=30))
    def test_finds_a_repeated_pair_where_there_is_one(self, rows):
        group, ids = np.array([row[0] for row in rows], np.int32), pa.array([row[1] for row in rows], pa.string())
        found = repeated(group, ids)
        if len(set(rows)) == len(rows):
            assert found is None
        else:
            assert found is not None
            assert found[0] < found[1]
            assert rows[found[0]] == rows[found[1]]

    def test_ids_that_differ_in_length_or_late_bytes_are_not_the_same(self):
        ids = ["", "\0", "\0\0", "12345678", "12345678\0", "123456781234567a", "123456781234567b", "é", "e"]
        assert repeated(np.zeros(len(ids), np.int32), pa.array(ids)) is None
        assert repeated(np.zeros(2, np.int32), pa.array(["", ""])) == (0, 1)

    def test_equal_hashes_of_different_ids_are_told_apart(self, monkeypatch):
        monkeypatch.setattr(ordering, "_MIXER", np.uint64(0))  # now every row has the same hash
        assert repeated(np.zeros(3, np.int32), pa.array(["a", "b", "c"])) is None
        assert repeated(np.zeros(3, np.int32), pa.array(["a", "b", "a"])) == (0, 2)

    def test_finds_a_pair_that_lies_in_different_blocks_of_a_long_sliced_column(self):
        ids = pa.array(["before", *map(str, range(20_000)), "7"]).slice(1)
        assert repeated(np.zeros(len(ids), np.int32), ids) == (7, 20_000)
        assert repeated(np.r_[np.zeros(20_000, np.int32), 1], ids) is None

    def test_a_pair_is_found_again_among_longer_ids(self):
        ids = pa.array(["short", *(f"{number:06}" for number in range(10_000)), "a much longer id " * 3, "short"])
        assert repeated(np.zeros(len(ids), np.int32), ids) == (0, 10_002)


def test_the_first_of_each_group_are_those_at_the_head_of_its_order():
    group, score = np.array([1, 0, 1, 0, 1, 0]), np.array([1, 5, 3, 5, 2, 4], np.float32)
    doc_id = pa.array(["a", "b", "c", "d", "e", "f"])
    assert first_ranked(group, score, doc_id, 2).tolist() == [3, 1, 2, 4]
    assert first_ranked(group, score, doc_id, 9).tolist() == [3, 1, 5, 2, 4, 0]


def test_flat_strings_reads_dictionaries_and_integers():
    chunked = pa.chunked_array([["b", "a"], ["b"]]).dictionary_encode()
    assert flat_strings(chunked).to_pylist() == ["b", "a", "b"]
    assert flat_strings(pa.array([7, 8])).to_pylist() == ["7", "8"]


def layouts(vectors: np.ndarray) -> dict[str, np.ndarray]:
    """The same vectors in other places and strides of memory."""
    n, dim = vectors.shape
    wide = np.zeros((n, 2 * dim + 3), vectors.dtype)
    wide[:, 3::2] = vectors
    raw = np.zeros(vectors.nbytes + 1, np.uint8)
    unaligned = raw[1:].view(vectors.dtype).reshape(n, dim)
    unaligned[:] = vectors
    read_only = vectors.copy()
    read_only.flags.writeable = False
    return {
        "fortran": np.asfortranarray(vectors),
        "strided": wide[:, 3::2],
        "unaligned": unaligned,
        "read-only": read_only,
        "reversed": vectors[::-1][::-1],
    }


SCORING = pytest.mark.parametrize("score", [exact_scores, exact_cosines])


class TestExactScores:
    @SCORING
    @pytest.mark.parametrize("dtype", [np.float16, np.float32])
    @settings(deadline=None, max_examples=100)
    @given(seed=st.integers(0, 2**32 - 1), dim=st.sampled_from([1, 2, 7, 8, 9, 64, 129, 384, 768, 1000, 9000]))
    def test_a_pair_has_the_same_bits_in_any_batch_position_and_memory_layout(self, score, dtype, seed, dim):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(1, 60))
        vectors, query = rng.normal(size=(n, dim)).astype(dtype), rng.normal(size=dim).astype(dtype)
        alone = np.concatenate([score(query, vectors[i : i + 1]) for i in range(n)]).tobytes()
        assert score(query, vectors).tobytes() == alone
        for name, layout in layouts(vectors).items():
            assert score(query, layout).tobytes() == alone, name
        shuffle = rng.permutation(n)
        assert score(query, vectors[shuffle])[np.argsort(shuffle)].tobytes() == alone
        cut = int(rng.integers(0, n + 1))
        assert score(query, vectors[:cut]).tobytes() + score(query, vectors[cut:]).tobytes() == alone

    @SCORING
    @pytest.mark.parametrize("dtype", [np.float16, np.float32])
    def test_a_query_for_each_vector_gives_the_bits_of_one_by_one(self, score, dtype):
        rng = np.random.default_rng(0)
        vectors, queries = (rng.normal(size=(900, 384)).astype(dtype) for _ in range(2))
        alone = [score(query, vector[None]) for query, vector in zip(queries, vectors, strict=True)]
        assert score(queries, vectors).tobytes() == np.concatenate(alone).tobytes()

    @SCORING
    def test_batches_beyond_one_block_give_the_same_bits(self, score):
        rng = np.random.default_rng(0)
        vectors, query = rng.normal(size=(3000, 384)).astype(np.float16), rng.normal(size=384).astype(np.float16)
        whole = score(query, vectors)
        for row in (0, 340, 341, 342, 2999):
            assert score(query, vectors[row : row + 1]).tobytes() == whole[row : row + 1].tobytes()

    @settings(deadline=None)
    @given(st.integers(0, 2**32 - 1), st.integers(1, 800))
    def test_the_score_is_the_true_inner_product_rounded_to_float32(self, seed, dim):
        rng = np.random.default_rng(seed)
        vectors, query = rng.normal(size=(3, dim)).astype(np.float32), rng.normal(size=dim).astype(np.float32)
        true = [math.fsum(float(a) * float(b) for a, b in zip(query, vector, strict=True)) for vector in vectors]
        # A double rounding may move the last bit once in 10^8 scores: allow one unit in the last place.
        np.testing.assert_array_max_ulp(exact_scores(query, vectors), np.array(true, np.float32), maxulp=1)

    def test_minus_zero_and_what_rounds_to_it_become_zero(self):
        vectors = np.array([[-0.0, 0.0], [-1e-30, 0.0]], np.float32)
        for query in (np.array([1, 0], np.float32), np.array([1e-30, 0], np.float32)):
            assert not np.signbit(exact_scores(query, vectors[:1])).any()
        assert not np.signbit(exact_scores(np.array([1e-30, 0], np.float32), vectors)).any()

    def test_cosines_are_scale_free_and_zero_vectors_score_zero(self):
        query = np.array([3, 4], np.float32)
        vectors = np.array([[3, 4], [30, 40], [-3, -4], [4, -3], [0, 0]], np.float32)
        assert exact_cosines(query, vectors).tolist() == [1, 1, -1, 0, 0]
        assert exact_cosines(np.zeros(2, np.float32), vectors).tolist() == [0] * 5

    @pytest.mark.parametrize("length", [1e-6, 0.5, 1e6])
    def test_cosines_of_vectors_of_any_length_are_those_of_unit_length(self, length):
        vectors = np.array([[3, 4], [4, 3], [-3, -4]], np.float32) / 5
        query = (vectors[0] * length).astype(np.float32)
        found = exact_cosines(query, (vectors * length).astype(np.float32))
        np.testing.assert_allclose(found, [1, 0.96, -1], rtol=1e-6)

    @pytest.mark.parametrize(("similarity", "expected"), [("dot", [25, 250, 0]), ("cosine", [1, 1, 0])])
    def test_a_similarity_means_its_own_scores(self, similarity, expected):
        vectors = np.array([[3, 4], [30, 40], [4, -3]], np.float32)
        assert exact_similarities(similarity, np.array([3, 4], np.float32), vectors).tolist() == expected

    @SCORING
    def test_a_query_of_another_dimension_is_refused(self, score):
        with pytest.raises(ValueError, match="query of shape"):
            score(np.ones(1, np.float32), np.ones((2, 3), np.float32))

    @SCORING
    def test_no_vectors_give_no_scores(self, score):
        scores = score(np.ones(3, np.float16), np.ones((0, 3), np.float16))
        assert scores.dtype == np.float32
        assert scores.shape == (0,)


def test_the_first_of_each_pair_is_numpys():
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 30, 2_000), rng.integers(2**64 - 40, 2**64 - 1, 2_000, dtype=np.uint64)
    _, expected = np.unique(np.stack([one.astype(np.uint64), other]), axis=1, return_index=True)
    assert (ordering.first_of_pairs(one, other) == expected).all()
    assert ordering.first_of_pairs(one[:0], other[:0]).tolist() == []


def test_candidates_are_ordered_by_score_then_row():
    rng = np.random.default_rng(0)
    score = rng.integers(-3, 4, (5, 300)).astype(np.float32) / 4
    score[:, 7], score[:, 8], score[:, 9], score[:, 10] = np.inf, -0.0, 0.0, -1e-40
    row = rng.permuted(np.tile(np.arange(300) * 9_999_991, (5, 1)), axis=1)
    row[:, 20:30], score[:, 20:30] = -1, -np.inf  # no more candidates
    expected = np.lexsort((np.where(row < 0, 1 << 62, row), -score), axis=1)
    found = ordering.order_of_candidates(score, row)
    assert (np.take_along_axis(row, found, 1) == np.take_along_axis(row, expected, 1)).all()

"""What a step trains on is a pure function of (seed, epoch, query), and epochs cover what there is."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from retrievo.data.pair_scores import PairScores
from retrievo.support.errors import RetrievoError
from retrievo.training.feeds.samplers import GroupSampler, Ragged, share

DOCUMENTS = 40


@st.composite
def samplers(draw: st.DrawFn) -> GroupSampler:
    documents = st.lists(st.integers(0, DOCUMENTS - 1), max_size=9)
    queries = draw(st.lists(st.tuples(documents, documents), min_size=1, max_size=12))
    queries.append(([3], [4, 5]))  # one at least can be trained on
    query_clusters = draw(st.none() | st.lists(st.integers(0, 3), min_size=len(queries), max_size=len(queries)))
    return GroupSampler(
        Ragged.of([sorted(set(positives)) for positives, _ in queries]),
        Ragged.of([negatives for _, negatives in queries]),
        documents=DOCUMENTS,
        batch_size=draw(st.integers(1, 8)),
        negatives_per_query=draw(st.integers(0, 6)),
        seed=draw(st.integers(0, 1000)),
        query_clusters=None if query_clusters is None else np.array(query_clusters),
    )


def one_query(
    positives: list[int],
    negatives: list[int],
    wanted: int = 2,
    documents: int = DOCUMENTS,
    hard_negative_ratio: float | None = None,
) -> GroupSampler:
    return GroupSampler(
        Ragged.of([positives]),
        Ragged.of([negatives]),
        documents=documents,
        batch_size=1,
        negatives_per_query=wanted,
        seed=7,
        hard_negative_ratio=hard_negative_ratio,
    )


@given(samplers(), st.integers(0, 50))
def test_a_group_is_a_positive_and_distinct_documents_none_of_them_positive(sampler: GroupSampler, epoch: int) -> None:
    for query in sampler.queries:
        positives = set(sampler.positives.list(query))
        first, *rest = sampler.draw(epoch, query).documents
        assert first in positives
        assert len(set(rest)) == len(rest)
        assert not positives & set(rest)
        assert all(0 <= document < DOCUMENTS for document in rest)


@given(samplers())
def test_epochs_cover_all_positives_and_the_whole_pool(sampler: GroupSampler) -> None:
    for query in sampler.queries:
        positives = set(sampler.positives.list(query))
        pool = set(sampler.negatives.list(query)) - positives
        rotations = {sampler.draw(epoch, query).documents[0] for epoch in range(len(positives))}
        assert rotations == positives
        if sampler.negatives_per_query:
            epochs = range(-(-len(pool) // sampler.negatives_per_query))
            assert pool <= {document for epoch in epochs for document in sampler.draw(epoch, query).documents[1:]}


@given(samplers(), st.integers(0, 5))
def test_a_pool_that_is_large_enough_gives_all_negatives_and_a_smaller_one_is_used_whole(
    sampler: GroupSampler, epoch: int
) -> None:
    wanted = sampler.negatives_per_query
    for query in sampler.queries:
        pool = set(sampler.negatives.list(query)) - set(sampler.positives.list(query))
        drawn = set(sampler.draw(epoch, query).documents[1:])
        assert len(drawn) == (wanted if pool else 0)
        assert len(drawn & pool) == min(wanted, len(pool))


@given(samplers(), st.integers(1, 4), st.integers(0, 40))
def test_any_step_gives_the_same_on_a_fresh_sampler_and_ranks_share_it_in_order(
    sampler: GroupSampler, ranks: int, step: int
) -> None:
    whole = sampler.batch(step)
    resumed = pickle.loads(pickle.dumps(sampler))
    parts = [draw for rank in range(ranks) for draw in resumed.batch(step, rank, ranks)]
    assert [draw.query for draw in parts] == [draw.query for draw in whole]
    assert all(np.array_equal(a.documents, b.documents) for a, b in zip(whole, parts, strict=True))


@given(samplers(), st.integers(0, 3))
def test_an_epoch_is_every_judged_query_once_and_only_its_last_batch_is_smaller(
    sampler: GroupSampler, epoch: int
) -> None:
    steps = range(epoch * sampler.batches_per_epoch, (epoch + 1) * sampler.batches_per_epoch)
    batches = [sampler.batch(step) for step in steps]
    assert [sampler.position(step)["epoch"] for step in steps] == [epoch] * len(steps)
    assert sorted(draw.query for batch in batches for draw in batch) == list(sampler.queries)
    assert all(len(batch) == sampler.batch_size for batch in batches[:-1])
    assert 1 <= len(batches[-1]) <= sampler.batch_size


def test_a_step_of_another_epoch_is_not_served_from_the_order_of_the_latest_one() -> None:
    sampler = GroupSampler(
        Ragged.of([[0]] * 50), Ragged.of([[]] * 50), documents=1, batch_size=50, negatives_per_query=0, seed=0
    )
    for epoch in (0, 2, 1):
        assert [draw.query for draw in sampler.batch(epoch)] == list(sampler.order(epoch))


def test_epochs_and_seeds_differ_in_order() -> None:
    many = Ragged.of([[0]] * 50)
    none = Ragged.of([[]] * 50)
    first, second = (
        GroupSampler(many, none, documents=1, batch_size=50, negatives_per_query=0, seed=seed) for seed in (0, 1)
    )
    orders = {tuple(sampler.order(epoch)) for sampler in (first, second) for epoch in (0, 1)}
    assert len(orders) == 4


def test_a_query_without_a_pool_trains_in_batch_only() -> None:
    assert one_query([3], [], wanted=5).draw(0, 0).documents.tolist() == [3]


def test_filling_changes_from_epoch_to_epoch_and_repeats_itself() -> None:
    sampler = one_query([3], [4], wanted=6)
    fills = [tuple(sampler.draw(epoch, 0).documents[2:]) for epoch in (0, 1, 0)]
    assert fills[0] == fills[2] != fills[1]


def test_a_corpus_too_small_to_fill_from_gives_what_there_is() -> None:
    sampler = one_query([0, 2], [1], wanted=7, documents=5)
    assert sorted(sampler.draw(0, 0).documents[1:]) == [1, 3, 4]


def test_no_query_with_a_positive_is_an_error() -> None:
    with pytest.raises(RetrievoError, match="none has a relevant document"):
        one_query([], [1])


@given(st.integers(0, 30), st.integers(1, 8))
def test_shares_are_contiguous_and_differ_by_one_at_most(total: int, ranks: int) -> None:
    parts = [range(total)[share(total, rank, ranks)] for rank in range(ranks)]
    assert [row for part in parts for row in part] == list(range(total))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("hard_negative_ratio", [0.0, 0.1, 0.5, 1.0])
def test_a_share_of_the_negatives_is_hard_and_the_others_are_any_documents(hard_negative_ratio: float) -> None:
    pool = list(range(1, 6))
    sampler = one_query([0], pool, wanted=4, documents=1000, hard_negative_ratio=hard_negative_ratio)
    groups = [sampler.draw(epoch, 0).documents[1:] for epoch in range(1000)]
    assert all(len(set(group)) == 4 and 0 not in group for group in groups)
    assert np.isin(groups, pool).mean() == pytest.approx(hard_negative_ratio, abs=0.02)
    assert all(np.array_equal(sampler.draw(epoch, 0).documents[1:], groups[epoch]) for epoch in (0, 500, 999))


@pytest.mark.parametrize("hard_negative_ratio", [0.1, 0.25])
def test_a_share_goes_through_the_whole_pool_evenly(hard_negative_ratio: float) -> None:
    pool = list(range(1, 29))
    sampler = one_query([0], pool, wanted=7, documents=1000, hard_negative_ratio=hard_negative_ratio)
    drawn = np.concatenate([sampler.draw(epoch, 0).documents[1:] for epoch in range(4000)])
    counts = np.bincount(drawn, minlength=29)[pool]
    assert counts.min() > 0.5 * counts.mean()


def test_nothing_is_filled_up_with_documents_without_text() -> None:
    sampler = one_query([0], [1], wanted=6, documents=10)
    sampler.empty = np.array([3, 7])
    drawn = {int(document) for epoch in range(50) for document in sampler.draw(epoch, 0).documents}
    assert drawn == set(range(10)) - {3, 7}


def test_with_a_share_a_query_without_a_pool_gets_random_negatives() -> None:
    assert len(one_query([0], [], wanted=3).draw(0, 0).documents) == 1
    assert len(set(one_query([0], [], wanted=3, hard_negative_ratio=0.1).draw(0, 0).documents)) == 4


@given(samplers(), st.integers(0, 3))
def test_a_batch_is_of_as_few_topics_as_fill_it(sampler: GroupSampler, epoch: int) -> None:
    if sampler.query_clusters is None:
        return
    steps = range(epoch * sampler.batches_per_epoch, (epoch + 1) * sampler.batches_per_epoch)
    query_clusters = [{int(sampler.query_clusters[draw.query]) for draw in sampler.batch(step)} for step in steps]
    assert sum(map(len, query_clusters)) <= len(query_clusters) + len(set().union(*query_clusters)) - 1


def of_topics(seed: int = 0) -> GroupSampler:
    """1,000 queries of 10 query_clusters in batches of 32."""
    query_clusters = np.random.default_rng(5).integers(0, 10, 1000)
    given_ = {
        "documents": 1,
        "batch_size": 32,
        "negatives_per_query": 0,
        "query_clusters": query_clusters,
        "seed": seed,
    }
    return GroupSampler(Ragged.of([[0]] * 1000), Ragged.of([[]] * 1000), **given_)


def test_topics_meet_in_another_order_and_other_queries_in_a_batch_from_epoch_to_epoch() -> None:
    sampler = of_topics()
    orders = [sampler.order(epoch) for epoch in (0, 1, 0)]
    assert np.array_equal(orders[0], orders[2])
    first, second = ([frozenset(order[at : at + 32]) for at in range(0, 1000, 32)] for order in orders[:2])
    assert not set(first) & set(second)
    assert sampler.query_clusters is not None
    of_batch = sampler.query_clusters[orders[0][:992:32]]
    assert (of_batch[1:] == of_batch[:-1]).sum() < 10, "batches of one topic are scattered over the epoch"
    assert not np.array_equal(orders[0], of_topics(seed=1).order(0))


def balanced(scores: dict[int, float], wanted: int, unknown: list[int], bins: int = 4, seed: int = 7) -> GroupSampler:
    """One query with the positive 0, whose negatives a teacher scores so, or does not know."""
    documents = np.array([0, *scores])
    teacher = PairScores(np.zeros(len(documents)), documents, np.array([9.0, *scores.values()]), DOCUMENTS)
    return GroupSampler(
        Ragged.of([[0]]),
        Ragged.of([[*scores, *unknown]]),
        documents=DOCUMENTS,
        batch_size=1,
        negatives_per_query=wanted,
        seed=seed,
        balanced_margins=bins,
        teacher=teacher,
    )


SKEWED = {1: 0.0, 2: 1.0, 3: 1.2, 4: 2.1, 5: 2.9} | dict.fromkeys(range(6, 30), 3.5) | {30: 4.0}
BIN_OF = {document: min(int(score), 3) for document, score in SKEWED.items()}


def drawn(sampler: GroupSampler, epochs: int) -> list[list[int]]:
    return [sampler.draw(epoch, 0).documents[1:].tolist() for epoch in range(epochs)]


def test_balanced_negatives_are_uniform_over_bins_of_the_margin_and_within_a_bin() -> None:
    found = [negative for (negative,) in drawn(balanced(SKEWED, 1, [31, 32]), 4000)]
    assert set(found) == set(SKEWED), "what the teacher does not know is drawn last"
    assert chisquare(np.bincount([BIN_OF[document] for document in found])).pvalue > 0.01
    assert chisquare(np.bincount([document for document in found if BIN_OF[document] == 3])[6:31]).pvalue > 0.01


def test_without_balance_the_bin_with_most_documents_is_drawn_most() -> None:
    sampler = balanced(SKEWED, 1, [])
    sampler.balanced_margins = None
    bins = np.bincount([BIN_OF[document] for (document,) in drawn(sampler, 300)])
    assert bins[3] == 250, "25 of 30 documents"


@given(st.integers(1, 34), st.integers(0, 100))
def test_a_balanced_group_takes_bins_in_turn_and_what_is_unknown_last(wanted: int, epoch: int) -> None:
    negatives = balanced(SKEWED, wanted, [31, 32]).draw(epoch, 0).documents[1:].tolist()
    assert len(negatives) == len(set(negatives)) == wanted
    assert not set(negatives[: len(SKEWED)]) - set(SKEWED)
    counts = np.bincount([BIN_OF[document] for document in negatives if document in SKEWED], minlength=4)
    sizes = np.bincount(list(BIN_OF.values()))
    most = counts.max()
    assert all(count >= min(size, most - 1) for count, size in zip(counts, sizes, strict=True))


def test_balanced_draws_are_a_pure_function_of_seed_epoch_and_query() -> None:
    first = drawn(balanced(SKEWED, 3, [31]), 20)
    assert drawn(pickle.loads(pickle.dumps(balanced(SKEWED, 3, [31]))), 20) == first
    assert drawn(balanced(SKEWED, 3, [31], seed=8), 20) != first
    assert len({tuple(group) for group in first}) > 10


@pytest.mark.parametrize("scores", [{}, {1: 2.0}, {1: 2.0, 2: 2.0, 3: 2.0}])
def test_margins_without_a_range_are_one_bin(scores: dict[int, float]) -> None:
    sampler = balanced(scores, 2, [4, 5])
    for group in drawn(sampler, 20):
        assert len(set(group)) == 2
        assert len(set(group) & set(scores)) == min(2, len(scores))

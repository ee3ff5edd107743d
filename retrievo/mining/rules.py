"""The rules that keep relevant documents, and documents that are probably relevant, out of the negatives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from retrievo.data.pair_scores import PairScores
from retrievo.data.run import Run
from retrievo.data.tables import NEGATIVES
from retrievo.mining.candidates import Candidates, Judged
from retrievo.mining.near_duplicates import Shingles

DROPPED = pa.schema([*NEGATIVES.arrow, ("rule", pa.string())])
# Reasons why a candidate is not a negative, in the order in which they are checked; the first that holds is recorded.
RULES = (
    "unknown",  # the document is not in the corpus
    "relevant",
    "same-text",  # the same text as a relevant document
    "query-text",  # the document is the query itself
    "near-duplicate",  # a near duplicate of a relevant document
    "below-min-score",
    "above-max-score",
    "margin",
    "relative-margin",
    "teacher",
)
# rules whose decisions a person should check
JUDGED_BY_SCORE = ("near-duplicate", "margin", "relative-margin", "teacher")


@dataclass(frozen=True)
class Filters:
    """Thresholds beyond which a candidate is suspected to be relevant; None switches a rule off.

    min_score, max_score: bounds of the miner's score. margin: how far below the positive's score a candidate must
    score, in the miner's units; relative_margin: the same as a share of the positive's |score|. positive: whether
    margins are measured from the `lowest` or the `highest` scoring relevant document among those that the miner found;
    where it found none, margins drop nothing. near_duplicate: Jaccard similarity with a relevant document at which a
    candidate is dropped.
    max_teacher_score: upper bound of the teacher's score.
    """

    min_score: float | None = None
    max_score: float | None = None
    margin: float | None = None
    relative_margin: float | None = None
    positive: str = "lowest"
    near_duplicate: float | None = None
    max_teacher_score: float | None = None


class Verdicts(NamedTuple):
    """The decisions of the rules on candidates.

    surplus: (score - best relevant score) / |best relevant score|, by the teacher's scores if there is a teacher, else
    by the miner's.
    """

    rule: np.ndarray  # [n] index in RULES of the first rule that holds, -1 = none
    surplus: np.ndarray  # [n] NaN where it is unknown
    teacher: np.ndarray  # [n] score by the teacher, NaN where there is none


class Rules:
    """Checks candidates against all rules, in the order of `RULES`."""

    def __init__(self, judged: Judged, filters: Filters, teacher: PairScores | None = None):
        self.judged, self.filters, self.teacher = judged, filters, teacher
        self.shingles = Shingles(judged.corpus.table) if filters.near_duplicate is not None else None

    def judge(self, found: Candidates) -> Verdicts:
        """Judges all candidates of whole queries: margins need the relevant documents among the candidates."""
        unknown = found.row < 0
        relevant = ~unknown & self.judged.is_relevant(found.query, found.row)
        same_text = ~unknown & self.judged.has_text_of_relevant(found.query, found.row)
        itself = ~unknown & self.judged.is_the_query(found.query, found.row)
        scores = found.score.astype(np.float64)
        teacher_scores = self.teacher.of(found.query, found.row) if self.teacher else np.full(len(scores), np.nan)
        masks = {"unknown": unknown, "relevant": relevant, "same-text": same_text, "query-text": itself}
        masks |= self._bounds(scores, teacher_scores) | self._margins(found.query, scores, relevant)
        decided = unknown | relevant | same_text | itself
        masks["near-duplicate"] = self._near_duplicates(found, ~decided)
        rule = np.full(len(scores), -1, np.int8)
        for number in reversed(range(len(RULES))):
            if RULES[number] in masks:
                rule[masks[RULES[number]]] = number
        surplus = teacher_scores if self.teacher else scores
        best = _positive_score(found.query, surplus, relevant, "highest")
        with np.errstate(invalid="ignore", divide="ignore"):
            return Verdicts(rule, (surplus - best) / np.abs(best), teacher_scores)

    def _bounds(self, scores: np.ndarray, teacher_scores: np.ndarray) -> dict[str, np.ndarray]:
        filters = self.filters
        found = {}
        if filters.min_score is not None:
            found["below-min-score"] = scores < filters.min_score
        if filters.max_score is not None:
            found["above-max-score"] = scores > filters.max_score
        if filters.max_teacher_score is not None:
            found["teacher"] = teacher_scores > filters.max_teacher_score  # False where there is no score (NaN)
        return found

    def _margins(self, query: np.ndarray, scores: np.ndarray, relevant: np.ndarray) -> dict[str, np.ndarray]:
        """Candidates within a margin of the positive's score or above it; |score| keeps margins positive."""
        positive = _positive_score(query, scores, relevant, self.filters.positive)
        found = {}
        if self.filters.margin is not None:
            found["margin"] = scores > positive - self.filters.margin  # False where there is no positive's score (NaN)
        if self.filters.relative_margin is not None:
            found["relative-margin"] = scores > positive - self.filters.relative_margin * np.abs(positive)
        return found

    def _near_duplicates(self, found: Candidates, open_: np.ndarray) -> np.ndarray:
        mask = np.zeros(len(found.query), bool)
        if self.shingles is None:
            return mask
        positions = np.flatnonzero(open_)
        for part in np.split(positions, np.flatnonzero(np.diff(found.query[positions])) + 1):
            for relevant in self.judged.relevant(int(found.query[part[0]])) if len(part) else ():
                mask[part] |= self.shingles.similarity(relevant, found.row[part]) >= self.filters.near_duplicate
        return mask


def _positive_score(query: np.ndarray, scores: np.ndarray, relevant: np.ndarray, which: str) -> np.ndarray:
    """For each candidate, the lowest or highest score among its query's relevant candidates [n]; NaN without any."""
    if not len(query):
        return scores
    known = relevant & ~np.isnan(scores)
    first, (worst, pick) = query[0], {"lowest": (np.inf, np.minimum), "highest": (-np.inf, np.maximum)}[which]
    best = np.full(int(query[-1] - first) + 1, worst)
    pick.at(best, query[known] - first, scores[known])
    best[np.isinf(best)] = np.nan
    own: np.ndarray = best[query - first]
    return own


def read_teacher(path: Path, judged: Judged) -> PairScores:
    """Reads the scores of a run, by number of the judged query and row of the corpus."""
    run = Run.open(path).table
    query, row = judged.numbers(run["query_id"]), judged.corpus.id_map.rows(run["doc_id"])
    return PairScores(query, row, run["score"].to_numpy(), len(judged.corpus))

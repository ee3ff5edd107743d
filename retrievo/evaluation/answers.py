"""Answer recall: whether a retrieved text contains an answer, as defined in open-domain question answering.

DPR (Karpukhin et al. 2020, section 4) calls a passage positive if it contains an answer; the published R@k of Natural
Questions, TriviaQA and SQuAD is the fraction of questions with such a passage among the top k. Texts and answers are
compared as sequences of lowercase tokens in Unicode NFD: runs of letters, digits and marks, or single other symbols.
Titles are not searched.
"""

from __future__ import annotations

import functools
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrievo.data.corpus import Corpus
from retrievo.data.ordering import flat_strings
from retrievo.data.tables import Table
from retrievo.support import console
from retrievo.support.errors import RetrievoError

# an escape, a repetition of any sign, a special group, alternatives in a group, a repeated set
_PATTERN = re.compile(r"\\[sSdDwWbB.?()\[\]]|\.[*+?]|\(\?|\([^()]*\|[^()]*\)|\[[^\[\]]+\][*+?]")
NEVER = np.iinfo(np.int32).max
_ROWS_AT_ONCE = 4_096  # number of documents in memory at a time


def tokens(text: str) -> str:
    """The tokens of a text, each surrounded by single spaces, so that a phrase occurs in it iff it is a substring."""
    found = _token().findall(unicodedata.normalize("NFD", text))
    return f" {' '.join(found).lower()} "


@functools.cache
def _token() -> re.Pattern[str]:
    """The pattern of a token: a run of letters, numbers and marks, or one other visible symbol (0.2 s, once)."""
    kinds: dict[str, list[str]] = {"M": [], "Z": [], "C": []}
    for kind, points in groupby(range(sys.maxunicode + 1), key=lambda point: unicodedata.category(chr(point))[0]):
        if kind in kinds:
            run = list(points)
            kinds[kind].append(f"\\U{run[0]:08x}-\\U{run[-1]:08x}")
    marks, silent = "".join(kinds["M"]), "".join(kinds["Z"] + kinds["C"])
    return re.compile(f"(?:[^\\W_]|[{marks}])+|[^{silent}]")


@dataclass(frozen=True)
class Answers:
    """The strings that answer each query, and the corpus whose texts may hold them.

    query_ids: strings [A].
    answers:   the answers of each query; none is allowed.
    """

    query_ids: pa.LargeStringArray
    answers: Sequence[Sequence[str]]
    corpus: Corpus

    @classmethod
    def read(cls, table: Table, corpus: Corpus, judged: pa.LargeStringArray) -> Answers:
        """Reads a table of query_id and answers, keeping only judged queries where there are judgments.

        Raises: RetrievoError where a query occurs twice, or none of the judged queries occurs.
        """
        columns = table.read(["query_id", "answers"])
        if pc.count_distinct(columns["query_id"]).as_py() < columns.num_rows:
            raise RetrievoError(table.path, "has a query twice", "one row for each query", "join their answers")
        if len(judged):
            columns = columns.filter(pc.is_in(flat_strings(columns["query_id"]), value_set=judged))
        if not columns.num_rows:
            raise RetrievoError(table.path, "has no answers for the judged queries", None, "check --answers")
        found = [answers or [] for answers in columns["answers"].to_pylist()]
        return cls(flat_strings(columns["query_id"]), found, corpus)

    def patterns(self) -> tuple[int, str]:
        """The number of queries with an answer that looks like a regular expression (as in CuratedTREC), and one."""
        found = [next((answer for answer in some if _PATTERN.search(answer)), None) for some in self.answers]
        written = [answer for answer in found if answer is not None]
        return len(written), next(iter(written), "")

    @functools.cached_property
    def _phrases(self) -> list[list[str]]:
        """The tokens of each answer; an answer without tokens is never found."""
        return [[phrase for phrase in map(tokens, found) if phrase.strip()] for found in self.answers]

    def first_ranks(self, query: np.ndarray, doc_id: pa.LargeStringArray, rank: np.ndarray) -> tuple[np.ndarray, int]:
        """The rank of the first text with an answer, int32 [A], NEVER where none has one; and the rows without text.

        query:  positions among query_ids, [t].
        doc_id: document ids of the retrieved rows, [t].
        rank:   ranks of the retrieved rows, [t].
        """
        first = np.full(len(self.query_ids), NEVER, np.int32)
        rows = self.corpus.id_map.rows(doc_id)
        order = np.lexsort((rank, rows))
        order = order[rows[order] >= 0]
        with console.progress("looking for answers", len(order), "texts") as tick:
            for text, chosen in self._texts(rows, order):
                for at in chosen:
                    asked = query[at]
                    if rank[at] < first[asked] and any(phrase in text for phrase in self._phrases[asked]):
                        first[asked] = rank[at]
                tick(len(chosen))
        return first, len(rows) - len(order)

    def _texts(self, rows: np.ndarray, order: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Yields the tokens of each retrieved document once, with the retrieved rows that contain it."""
        wanted, starts = np.unique(rows[order], return_index=True)
        groups = np.split(order, starts[1:])
        for start in range(0, len(wanted), _ROWS_AT_ONCE):
            some = wanted[start : start + _ROWS_AT_ONCE].tolist()
            for number, document in enumerate(self.corpus.documents(some)):
                yield tokens(document.text), groups[start + number]

"""Runs and judgments as text, as trec_eval reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from retrievo.data.run import Run
from retrievo.evaluation.comparison import Evaluation
from retrievo.evaluation.judged_run import JudgedRun, Judgments
from retrievo.evaluation.names import Metric, Rules
from retrievo.evaluation.scoring import Standard
from retrievo.evaluation.texts import Texts


@pytest.fixture
def compare(tmp_path: Path) -> Callable[..., Evaluation]:
    """An evaluation of runs given as TREC text, the first of which is the baseline."""

    def made(
        runs: dict[str, str],
        qrels: Sequence[tuple[str, str, int]],
        metrics: str,
        rules: Rules | None = None,
        texts: Texts | None = None,
        reference: str | None = None,
    ) -> Evaluation:
        opened = {}
        for name, text in runs.items():
            (tmp_path / f"{name}.trec").write_text(text, encoding="utf-8")
            opened[name] = Run.open(tmp_path / f"{name}.trec")
        query_id, doc_id, relevance = zip(*qrels, strict=True)
        table = pa.table({"query_id": query_id, "doc_id": doc_id, "relevance": pa.array(relevance, pa.int32())})
        parsed = {typed: Metric.parse(typed) for typed in metrics.split()}
        first = None
        if reference is not None:
            (tmp_path / "reference.trec").write_text(reference, encoding="utf-8")
            first = JudgedRun.of(Run.open(tmp_path / "reference.trec"), Judgments.of(None), depth=100)
        standard = Standard(tuple(parsed.values()), Judgments.of(table), rules or Rules(), reference=first)
        return Evaluation.of(parsed, standard, opened, texts or Texts(), next(iter(runs)), seed=0)

    return made


@pytest.fixture
def trec() -> Callable[..., str]:
    """`trec(q1="d1 d2")`: a run that ranks documents in this order."""

    def made(**rankings: str) -> str:
        lines = [
            f"{query} Q0 {doc} {rank} {100 - rank} x"
            for query, docs in rankings.items()
            for rank, doc in enumerate(docs.split(), start=1)
        ]
        return "\n".join(lines) + "\n"

    return made

"""The names of metrics for `--metrics`, and their meanings (standard library only)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from retrievo.support.errors import UsageError, did_you_mean

DEFAULT_METRICS = ("mrr@10", "ndcg@10", "recall@100")
DEFAULT_CONVENTION = "trec_eval"
STYLES = ("table", "markdown", "latex", "csv", "json")  # the functions are in formats.py


@dataclass(frozen=True)
class Rules:
    """The rules by which queries and rows are counted.

    ties:         'score' ranks by descending float32 score, then descending document id, and ignores the file's rank
                  column; 'rank' uses that column.
    missing:      'zero' counts judged queries that the run lacks as 0; 'skip' leaves them out of the mean.
    exclude_self: whether to drop rows whose document id equals the query id.
    """

    ties: str = "score"
    missing: str = "zero"
    exclude_self: bool = False


@dataclass(frozen=True)
class Convention:
    """A named set of rules that published numbers follow."""

    help: str
    rules: Rules


CONVENTIONS = {
    "trec_eval": Convention("trec_eval -c: by score, ties by document id; a missing query is 0", Rules()),
    "msmarco": Convention("MS MARCO's script: by the file's ranks; a missing query is 0", Rules(ties="rank")),
    "beir": Convention(
        "BEIR: as trec_eval, without missing queries and documents that are the query itself",
        Rules(missing="skip", exclude_self=True),
    ),
}


@dataclass(frozen=True)
class Name:
    """One metric: `cutoff` says whether @k is required, optional or refused; aliases are in lower case."""

    help: str
    cutoff: str = "required"
    aliases: tuple[str, ...] = ()


NAMES = {
    "mrr": Name("reciprocal rank of the first relevant document", "optional", ("rr", "recip_rank", "reciprocal_rank")),
    "recall": Name("share of the relevant documents among the top k", "required", ("r",)),
    "ndcg": Name("discounted cumulative gain (linear gain) over the best possible one", "optional", ("ndcg_cut",)),
    "map": Name("precision averaged over the relevant documents", "optional", ("ap", "map_cut")),
    "p": Name("share of relevant documents among the top k", "required", ("precision", "prec")),
    "rprec": Name("precision at as many documents as are relevant", "none", ("r-prec", "r_prec", "r-precision")),
    "success": Name("1 where a relevant document is among the top k", "required", ("hit", "hits", "hit_rate")),
    "judged": Name("share of judged documents among the top k retrieved", "required"),
    "answer-recall": Name(
        "1 where one of the top k texts holds an answer", "required", ("answer_recall", "has_answer", "accuracy")
    ),
    "nb-recall": Name("share of a run's top n that the reference run has in its top k: nb-recall-n@k", "required"),
}
_CANONICAL = {alias: name for name, row in NAMES.items() for alias in (name, *row.aliases)}


@dataclass(frozen=True)
class Metric:
    """A metric; its text round-trips: `Metric.parse(str(metric)) == metric`.

    name:   a key of NAMES.
    cutoff: k, the number of top documents that count; None = all.
    depth:  n of nb-recall-n@k; None for other metrics.
    """

    name: str
    cutoff: int | None = None
    depth: int | None = None

    def __str__(self) -> str:
        depth = "" if self.depth is None else f"-{self.depth}"
        return f"{self.name}{depth}" if self.cutoff is None else f"{self.name}{depth}@{self.cutoff}"

    @property
    def needs_reference(self) -> bool:
        """Whether the metric compares a run with a reference run, and needs no qrels."""
        return self.name == "nb-recall"

    @property
    def needs_answers(self) -> bool:
        """Whether the metric searches texts for answers, and needs no qrels."""
        return self.name == "answer-recall"

    @property
    def needs_qrels(self) -> bool:
        """Whether the metric counts judged documents."""
        return not self.needs_reference and not self.needs_answers

    @classmethod
    def parse(cls, text: str) -> Metric:
        """Parses `mrr@10`, or the spellings of ir_measures (`RR@10`) and trec_eval (`ndcg_cut_10`, `recall.100`).

        Raises: UsageError for an unknown name, and for a cutoff that is missing or not allowed.
        """
        plain = text.strip().lower()
        name, cutoff = _split(plain, "@_.")
        depth = None
        if re.fullmatch(r"nb[-_]recall[-_]\d+", name):
            name, depth = _split(name.replace("_", "-"), "-")
        if graded := re.search(r"\(rel=(\d+)\)", plain):
            written = plain.replace(graded[0], "")
            fix = f"write {written} and pass --min-relevance {graded[1]}"
            raise UsageError(f"metric '{text}'", "holds a grade", None, fix)
        if name not in _CANONICAL:
            raise UsageError(f"metric '{text}'", "unknown name", None, _suggestion(plain))
        metric = cls(_CANONICAL[name], cutoff, depth)
        metric._check(text)
        return metric

    def _check(self, text: str) -> None:
        rule = NAMES[self.name].cutoff
        form = "nb-recall-50@200" if self.needs_reference else f"{self.name}@10"
        if self.needs_reference and (self.cutoff is None or self.depth is None):
            raise UsageError(f"metric '{text}'", "lacks its depth or cutoff", None, f"write it as {form}")
        if rule == "required" and self.cutoff is None:
            raise UsageError(f"metric '{text}'", "lacks its cutoff", None, f"write it as {form}")
        if rule == "none" and self.cutoff is not None:
            raise UsageError(f"metric '{text}'", "takes no cutoff", None, f"write it as {self.name}")
        if self.cutoff == 0 or self.depth == 0:
            raise UsageError(f"metric '{text}'", "its cutoff is 0", "at least 1", f"write it as {form}")


def _split(text: str, separators: str) -> tuple[str, int | None]:
    """Splits a name from its number: `ndcg_cut.10` gives ("ndcg_cut", 10); without a number, the second is None."""
    found = re.fullmatch(rf"(.+)[{re.escape(separators)}](\d+)", text, re.ASCII)
    return (found[1], int(found[2])) if found else (text, None)


def _suggestion(text: str) -> str:
    """Suggests the closest name, with the cutoff that was given."""
    digits = re.search(r"\d+$", text)
    cutoff = f"@{digits[0]}" if digits else ""
    known = [name if row.cutoff == "none" else name + cutoff for name, row in NAMES.items() if name != "nb-recall"]
    return did_you_mean(text, [*known, "nb-recall-50@200"])


def check_metric(text: str) -> None:
    """Raises UsageError for an unknown metric, or one that needs more than a run and judgments."""
    metric = Metric.parse(text)
    if metric.needs_reference or metric.needs_answers:
        raise UsageError("metric", f"found '{text}'", "a metric of one run and its judgments, such as ndcg@10")

"""Remarks that explain the means of an evaluation."""

from __future__ import annotations

from dataclasses import replace

from retrievo.evaluation.comparison import Evaluation
from retrievo.evaluation.names import CONVENTIONS, Rules
from retrievo.evaluation.scoring import PerQuery, Standard


def notes(evaluation: Evaluation, convention: str) -> list[str]:
    """Remarks about the queries that the means cover, and about conventions that give other numbers."""
    lines = [line for name, found in evaluation.runs.items() for line in _notes(name, found, evaluation.standard)]
    lines += _answer_notes(evaluation.standard)
    return lines + [line for name in evaluation.runs for line in _footnotes(evaluation, name, convention)]


def _answer_notes(standard: Standard) -> list[str]:
    """A remark where most answers look like regular expressions, which are not supported."""
    if standard.answers is None:
        return []
    count, example = standard.answers.patterns()
    if 2 * count <= len(standard.answers.answers):
        return []
    found = f"answers: those of {count:,} queries look like regular expressions ('{example[:60]}')"
    return [f"{found}; they are looked for letter by letter, so most count as not found: give them as plain text"]


def _footnotes(evaluation: Evaluation, name: str, convention: str) -> list[str]:
    """A remark for each other convention whose means differ: by how much, and why."""
    means, lines = evaluation.means()[name], []
    for other, row in CONVENTIONS.items():
        if other == convention or (row.rules.ties == "rank" and not evaluation.judged_runs[name].has_file_ranks):
            continue
        plain = tuple(metric for metric in evaluation.metrics.values() if metric.needs_qrels)
        rules = replace(evaluation.standard, metrics=plain, rules=row.rules, reference=None, answers=None)
        found = rules.score(evaluation.judged_runs[name], name).means() if plain else {}
        moved = [
            f"{typed} {found[metric]:.4f} ({found[metric] - means[typed]:+.4f})"
            for typed, metric in evaluation.metrics.items()
            if metric in found and abs(found[metric] - means[typed]) >= 5e-5
        ]
        if moved:
            lines.append(
                f"{name}: the convention {other} gives {', '.join(moved)}: {_why(evaluation, name, row.rules)}"
            )
    return lines


def _why(evaluation: Evaluation, name: str, rules: Rules) -> str:
    """The reasons why other rules give other means for a run than those of this evaluation."""
    judged_run, found, own, reasons = evaluation.judged_runs[name], evaluation.runs[name], evaluation.standard.rules, []
    unlike, selves = int(judged_run.unlike.sum()), len(judged_run.self_rows.query)
    if rules.ties != own.ties and unlike:
        reasons.append(f"the file ranks {unlike:,} queries otherwise than their scores do")
    if rules.missing != own.missing and found.missing:
        effect = "leaves out" if rules.missing == "skip" else "counts as 0"
        reasons.append(f"it {effect} {found.missing:,} missing queries")
    if rules.exclude_self != own.exclude_self and selves:
        reasons.append(
            f"it {'drops' if rules.exclude_self else 'keeps'} {selves:,} rows whose document id is the query id"
        )
    return "; ".join(reasons)


def _notes(name: str, found: PerQuery, standard: Standard) -> list[str]:
    lines = []
    if found.missing and standard.measures:
        effect = "counted as 0" if standard.rules.missing == "zero" else "left out"
        lines.append(f"{name}: {found.missing:,} of {found.judged:,} judged queries are missing, {effect}")
    if found.unjudged and standard.measures:
        effect = "count for nb-recall alone" if standard.compares else "are left out"
        lines.append(f"{name}: {found.unjudged:,} queries have no judgments and {effect}")
    if found.unknown:
        lines.append(f"{name}: {found.unknown:,} rows are of documents that the corpus lacks, taken for no answer")
    if found.removed:
        lines.append(f"{name}: {found.removed:,} rows removed whose document id is the query id")
    return lines

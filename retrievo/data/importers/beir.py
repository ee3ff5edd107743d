"""BEIR: `corpus.jsonl`, `queries.jsonl` and `qrels/<split>.tsv`, in a folder or a zip archive."""

from __future__ import annotations

from pathlib import PurePosixPath

from retrievo.data.importers.dataset import DatasetWriter
from retrievo.data.importers.input_files import ImportSource, Part
from retrievo.data.importers.json_lines import read_jsonl
from retrievo.data.importers.judgments import copy_judgments
from retrievo.support.errors import RetrievoError

_NOUNS = {"corpus.jsonl": "corpus", "queries.jsonl": "queries"}


def find(source: ImportSource) -> list[Part]:
    """The three tables of one dataset.

    Raises: RetrievoError where there is none of them, or more than one dataset.
    """
    tables = source.named(*_NOUNS)
    judged = [member for member in source.named("*.tsv") if PurePosixPath(member.path).parent.name == "qrels"]
    homes = {str(PurePosixPath(member.path).parent) for member in tables}
    homes |= {str(PurePosixPath(member.path).parent.parent) for member in judged}
    if not homes:
        raise RetrievoError(
            source.path, "holds no BEIR files", "corpus.jsonl, queries.jsonl and qrels/*.tsv", "check it"
        )
    if len(homes) > 1:
        some = ", ".join(sorted(homes)[:4])
        raise RetrievoError(
            source.path, f"holds {len(homes)} datasets ({some})", "one", "import each by its own folder"
        )
    parts = [Part(member, _NOUNS[member.name]) for member in tables]
    return parts + [Part(member, "qrels", member.stem) for member in judged]


def read(parts: list[Part], store: DatasetWriter) -> None:
    """Copies the rows of each file."""
    for part in store.each(parts):
        if part.noun == "qrels":
            copy_judgments(part, store)
        elif part.noun == "corpus":
            for lines, (ids, texts, titles) in read_jsonl(part.member, ["_id", "text"], ["title"]):
                store.documents(lines, ids, titles, texts)
        else:
            for lines, (ids, texts) in read_jsonl(part.member, ["_id", "text"]):
                store.queries(lines, ids, texts)

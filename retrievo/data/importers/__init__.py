"""Importers: foreign formats, streamed into dataset folders. This table names them; it imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """A format that `retrievo import` reads.

    about:  one line for the help.
    reader: module with `find(source) -> list[Part]`, which says what each file is, and `read(parts, store, **options)`,
            whose keywords are the options of `import` that are declared for this format only.
    """

    about: str
    reader: str


FORMATS = {
    "beir": Format("corpus.jsonl, queries.jsonl and qrels/*.tsv", "retrievo.data.importers.beir"),
    "msmarco": Format("collection, queries, qrels and qidpidtriples TSV files", "retrievo.data.importers.msmarco"),
    "trec": Format("SGML documents, topics in SGML or XML, and 4-column qrels", "retrievo.data.importers.trec"),
    "smart": Format("Cranfield-style .I .T .W files with their judgments", "retrievo.data.importers.smart"),
    "squad": Format("question answering JSON, versions 1 and 2", "retrievo.data.importers.squad"),
    "dpr": Format("passages TSV, questions with contexts in JSON, question-answer CSV", "retrievo.data.importers.dpr"),
    "tevatron": Format("JSON Lines with positive and negative passages", "retrievo.data.importers.tevatron"),
    "jsonl": Format("JSON Lines, or an array of objects, with columns of your choice", "retrievo.data.importers.jsonl"),
    "tsv": Format("tab-separated lines, quotes are text", "retrievo.data.importers.tsv"),
    "csv": Format("quoted values between commas, semicolons, tabs or bars", "retrievo.data.importers.csv_"),
    "text": Format("a folder of .txt, .md and .html files, cut into passages", "retrievo.data.importers.text"),
}

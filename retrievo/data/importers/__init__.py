"""Importers: foreign formats, streamed into dataset folders. This table names them; it imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """A format that `retrievo import` reads.

    about:  one line for the help.
    reader: module with `find(source) -> list[Part]`, which says what each file is, and `read(parts, store, **options)`,
            whose keywords are `options`.
    options: the options of `import` that this format has.
    """

    about: str
    reader: str
    options: tuple[str, ...] = ()


_COLUMNS = ("role", "id_column", "text_column", "title_column", "number_lines")


FORMATS = {
    "beir": Format("corpus.jsonl, queries.jsonl and qrels/*.tsv", "retrievo.data.importers.beir"),
    "msmarco": Format("collection, queries, qrels and qidpidtriples TSV files", "retrievo.data.importers.msmarco"),
    "trec": Format(
        "SGML documents, topics in SGML or XML, and 4-column qrels", "retrievo.data.importers.trec", ("topic_field",)
    ),
    "smart": Format("Cranfield-style .I .T .W files with relevance judgments", "retrievo.data.importers.smart"),
    "squad": Format("question answering JSON, versions 1 and 2", "retrievo.data.importers.squad"),
    "dpr": Format("passages TSV, questions with contexts in JSON, question-answer CSV", "retrievo.data.importers.dpr"),
    "tevatron": Format("JSON Lines with positive and negative passages", "retrievo.data.importers.tevatron"),
    "pairs": Format(
        "training pairs and triplets in JSON, CSV, TSV or Parquet",
        "retrievo.data.importers.pairs",
        ("query_column", "positive_column", "negative_column", "dev_ratio"),
    ),
    "jsonl": Format(
        "JSON Lines, or an array of objects, with columns of your choice", "retrievo.data.importers.jsonl", _COLUMNS
    ),
    "tsv": Format("tab-separated lines, quotes are text", "retrievo.data.importers.tsv", (*_COLUMNS, "header")),
    "csv": Format(
        "quoted values between commas, semicolons, tabs or bars", "retrievo.data.importers.csv_", (*_COLUMNS, "header")
    ),
    "text": Format(
        "a folder of .txt, .md and .html files, cut into passages",
        "retrievo.data.importers.text",
        ("passage_words", "stride"),
    ),
}

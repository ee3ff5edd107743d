"""What a person gets for a typed question: a table of hits with titles and highlighted snippets, or JSON."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from retrievo.retrieval.snippets import Snippet
from retrievo.support.console import json_text, plain
from retrievo.support.values import Values

_NO_TEXT = Snippet("(the text is not at hand: pass --corpus)", ())


@dataclass(frozen=True)
class Hit:
    """One document found: its rank from 1, its score, what there is to read, and its rank in each of several indexes
    (None where one did not find it); its corpus where there are several."""

    rank: int
    score: float
    id: str
    title: str
    snippet: Snippet = _NO_TEXT
    ranks: Mapping[str, int | None] = field(default_factory=dict)
    corpus: str | None = None

    @property
    def found_by(self) -> str:
        """Its rank in each index, as a person reads it."""
        return ", ".join(f"{name} {rank or '-'}" for name, rank in self.ranks.items())

    def as_json(self) -> Values:
        """What `--json` prints; the corpus only where there are several."""
        fields = {**vars(self), "snippet": self.snippet.text, "ranks": dict(self.ranks)}
        return {name: value for name, value in fields.items() if name != "corpus" or value}


@dataclass(frozen=True)
class Answer:
    """The documents found for a question, best first."""

    question: str
    hits: tuple[Hit, ...]

    def print(self, *, as_json: bool = False) -> None:
        """Prints to stdout: a table on a terminal, plain lines when piped, or JSON."""
        if as_json:
            rows = [hit.as_json() for hit in self.hits]
            print(json_text({"question": self.question, "hits": rows}))
        elif not self.hits:
            print("no document matches")
        elif sys.stdout.isatty():
            self._print_table()
        else:
            for hit in self.hits:
                fields = [str(hit.rank), f"{hit.score:.4f}", hit.id, hit.title, hit.snippet.text]
                fields += [hit.found_by] if hit.ranks else []
                print("\t".join([*fields, hit.corpus] if hit.corpus else fields))

    def _print_table(self) -> None:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(show_lines=True, title=plain(self.question, "table.title"), title_justify="left")
        table.add_column("rank", justify="right")
        table.add_column("score", justify="right")
        table.add_column("document", overflow="fold", max_width=24)
        table.add_column("title and text", ratio=1)
        several = any(hit.ranks for hit in self.hits)
        across = any(hit.corpus for hit in self.hits)
        if several:
            table.add_column("found by")
        if across:
            table.add_column("corpus", overflow="fold")
        for hit in self.hits:
            title = plain(f"{hit.title}\n" if hit.title else "", "bold")
            shown = plain(hit.snippet.text)
            for start, end in hit.snippet.spans:
                shown.stylize("bold yellow", start, end)
            cells = [plain(str(hit.rank)), plain(f"{hit.score:.4f}"), plain(hit.id), Text.assemble(title, shown)]
            cells += [plain(hit.found_by.replace(", ", "\n"))] if several else []
            table.add_row(*cells, *([plain(hit.corpus or "")] if across else []))
        Console(highlight=False).print(table)

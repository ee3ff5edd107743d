"""What a person gets for a typed question: a table of hits with titles and highlighted snippets, or JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

from retrievo.retrieval.snippets import Snippet

_NO_TEXT = Snippet("(the text is not at hand: pass --corpus)", ())


@dataclass(frozen=True)
class Hit:
    """One document found: its rank from 1, its score, and what there is to read."""

    rank: int
    score: float
    id: str
    title: str
    snippet: Snippet = _NO_TEXT


@dataclass(frozen=True)
class Answer:
    """The documents found for a question, best first."""

    question: str
    hits: tuple[Hit, ...]

    def print(self, *, as_json: bool = False) -> None:
        """Prints to stdout: a table on a terminal, plain lines when piped, or JSON."""
        if as_json:
            rows = [{**vars(hit), "snippet": hit.snippet.text} for hit in self.hits]
            print(json.dumps({"question": self.question, "hits": rows}, ensure_ascii=False, indent=2))
        elif not self.hits:
            print("no document matches")
        elif sys.stdout.isatty():
            self._print_table()
        else:
            for hit in self.hits:
                print(f"{hit.rank}\t{hit.score:.4f}\t{hit.id}\t{hit.title}\t{hit.snippet.text}")

    def _print_table(self) -> None:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(show_lines=True, title=self.question, title_justify="left")
        table.add_column("rank", justify="right")
        table.add_column("score", justify="right")
        table.add_column("document", overflow="fold", max_width=24)
        table.add_column("title and text", ratio=1)
        for hit in self.hits:
            title = (f"{hit.title}\n" if hit.title else "", "bold")
            shown = Text(hit.snippet.text)
            for start, end in hit.snippet.spans:
                shown.stylize("bold yellow", start, end)
            table.add_row(str(hit.rank), f"{hit.score:.4f}", hit.id, Text.assemble(title, shown))
        Console(highlight=False).print(table)

"""Options that several commands share, each declared once."""

from __future__ import annotations

from dataclasses import MISSING
from typing import Any

from retrievo.support.errors import UsageError
from retrievo.support.options import option
from retrievo.support.sizes import bytes_of

TITLE_TEMPLATE = "{title} {text}"
TABLE = "Parquet file, folder or glob, or a dataset folder"


def corpus_option(default: Any = MISSING, **declared: Any) -> Any:
    """`--corpus`."""
    return option(f"Documents (id, title, text): {TABLE}.", default=default, **declared)


def corpora_option() -> Any:
    """`--corpus`, of which there may be several."""
    return option(f"Documents (id, title, text): {TABLE}; may be repeated.")


def queries_option(default: Any = MISSING, **declared: Any) -> Any:
    """`--queries`."""
    return option(f"Queries (id, text): {TABLE}.", default=default, **declared)


def qrels_option(default: Any = MISSING, **declared: Any) -> Any:
    """`--qrels`."""
    help = f"Judgments: {TABLE} (its test split, else dev), TREC or BEIR text."
    return option(help, default=default, **declared)


def output_option(help: str, default: Any = MISSING, **declared: Any) -> Any:
    """`--output`, or another path that a command writes to."""
    return option(help, default=default, written=True, **declared)


def force_option() -> Any:
    """`--force`."""
    return option(
        "Replace a finished output; other files in its folder stay.",
        default=False,
        affects_output=False,
        decides_output=True,
    )


def restart_option() -> Any:
    """`--restart`."""
    help = "Begin anew where unfinished work lies, instead of going on with it or refusing it."
    return option(help, default=False, affects_output=False, decides_output=True)


def threads_option(**declared: Any) -> Any:
    """`--threads`."""
    return option("CPU threads.", default=None, minimum=1, affects_output=False, hidden_default="all cores", **declared)


def json_option(**declared: Any) -> Any:
    """`--json`."""
    return option("Print JSON instead of a table.", default=False, affects_output=False, **declared)


def title_template_option(default: str | None = TITLE_TEMPLATE, **declared: Any) -> Any:
    """`--title-template`."""
    help = "How the title and the text of a document become one text."
    return option(help, default=default, check=check_title_template, **declared)


def check_title_template(template: str) -> None:
    """Raises UsageError where a title template has no `{text}` or names anything but `{title}` and `{text}`."""
    rest = template.replace("{title}", "").replace("{text}", "")
    if "{text}" not in template or "{" in rest or "}" in rest:
        raise UsageError("--title-template", f"found '{template}'", "{text} and, where titles count, {title}")


def memory_option() -> Any:
    """`--memory`."""
    help = "Memory for vectors and candidates, as in 4GB: what does not fit is streamed from disk."
    return option(
        help, default=None, check=parse_memory, affects_output=False, hidden_default="the system's page cache decides"
    )


def parse_memory(text: str) -> int:
    """Bytes of a size (`support.sizes`) that a search can work in.

    Raises: UsageError for what is no size, and for less than 64 MB.
    """
    size = bytes_of("--memory", text)
    if size < 64 << 20:
        raise UsageError("--memory", f"found '{text}'", "64MB or more")
    return size


def heap_option(**declared: Any) -> Any:
    """`--heap`."""
    help = "Memory of the Java machine, as in 4g."
    return option(help, default=None, affects_output=False, hidden_default="a quarter of the memory", **declared)

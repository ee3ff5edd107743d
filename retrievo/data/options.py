"""Declarations of options that several commands share."""

from __future__ import annotations

from dataclasses import MISSING
from pathlib import Path
from typing import Any

from retrievo.support.conditions import only_with
from retrievo.support.errors import UsageError
from retrievo.support.options import option
from retrievo.support.sizes import bytes_of

TITLE_TEMPLATE = "{title} {text}"
K1, B = 0.9, 0.4  # BM25 parameters, the defaults of Anserini
TABLE = "a dataset folder, or a Parquet file, folder or glob"


OF_DATA = "the table of --data"


def data_option(*parts: str, **declared: Any) -> Any:
    """`--data`, which stands for options that are not given themselves."""
    flags = [f"--{part}" for part in parts]
    listed = " and ".join(filter(None, [", ".join(flags[:-1]), flags[-1]]))
    help = f"Dataset folder, as retrievo import writes it. The folder stands for {listed}."
    shared = {"affects_output": False, "shown": True, "group": "Data", "stands_for": parts}
    return option(help, default=None, check=_check_folder, **{**shared, **declared})


def _check_folder(path: Path | str) -> None:
    """Raises UsageError for a file; a folder that is not there may be made before it is read."""
    from retrievo.data.foreign import import_command

    if not Path(path).is_file():
        return
    command = import_command(Path(path))
    fix = f"import it first: {command}" if command else f"pass --data {Path(path).parent}"
    raise UsageError("--data", f"found '{path}', which is a file", "a dataset folder", fix)


def split_option(default: str | None = None) -> Any:
    """`--split`; without a default it is the test split, else dev."""
    help = "Split of --data whose relevance judgments are used, as in train, dev or test."
    hidden = "test, else dev" if default is None else None
    return option(
        help, default=default, affects_output=False, applies=only_with("data"), hidden_default=hidden, group="Data"
    )


def of_data(data: Path | str | None, *parts: str, split: str | None = None) -> dict[str, Path]:
    """What a dataset folder stands for; nothing is opened here.

    data: None = no options are given by a folder. split: None = the judgments that a dataset folder stands for itself.
    """
    if data is None:
        return {}
    folder = Path(data)
    judgments = folder if split is None else folder / "qrels" / f"{split}.parquet"
    return {part: judgments if part in ("qrels", "judged") else folder for part in parts}


def check_tables(**tables: Any) -> None:
    """Raises UsageError for a table that was given neither by itself nor by `--data`."""
    for name, path in tables.items():
        if not path:
            fix = f"pass --{name}, or a dataset folder: --data DATA"
            raise UsageError(f"--{name}", "is needed but was given neither as a flag nor in a TOML file", None, fix)


def corpus_option(default: Any = MISSING, **declared: Any) -> Any:
    """`--corpus`."""
    help = f"Corpus: {TABLE}. The columns are id, title and text."
    return option(help, default=default, group="Data", **declared)


def corpora_option(default: Any = MISSING, **declared: Any) -> Any:
    """`--corpus`, of which there may be several."""
    help = f"Corpus: {TABLE}. The columns are id, title and text. The option may be repeated."
    return option(help, default=default, group="Data", **declared)


def queries_option(default: Any = MISSING, **declared: Any) -> Any:
    """`--queries`."""
    return option(f"Queries: {TABLE}. The columns are id and text.", default=default, group="Data", **declared)


def qrels_option(
    default: Any = MISSING, help: str = "Relevance judgments.", split: str = "test split, else dev", **declared: Any
) -> Any:
    """`--qrels`; `help` is what is shown at first, `split` what is read of a dataset folder."""
    help = f"{help} The value is {TABLE} (its {split}), or a TREC or BEIR text file."
    return option(help, default=default, **{"group": "Data", **declared})


def output_option(help: str, default: Any = MISSING, **declared: Any) -> Any:
    """`--output`, or another path that a command writes to."""
    return option(help, default=default, written=True, group="Output", **declared)


def force_option() -> Any:
    """`--force`."""
    return option(
        "Replace a finished output. Other files in the output folder are kept.",
        default=False,
        affects_output=False,
        decides_output=True,
        group="Output",
    )


def restart_option() -> Any:
    """`--restart`."""
    help = "Discard unfinished work at the output and start over. Without this option, unfinished work is resumed."
    return option(help, default=False, affects_output=False, decides_output=True, group="Output")


def threads_option(**declared: Any) -> Any:
    """`--threads`."""
    return option(
        "Number of CPU threads to use.",
        default=None,
        minimum=1,
        affects_output=False,
        hidden_default="all cores",
        group="Machine",
        **declared,
    )


def json_option(**declared: Any) -> Any:
    """`--json`."""
    help = "Print JSON instead of a table."
    return option(help, default=False, affects_output=False, group="Output", **declared)


def title_template_option(default: str | None = TITLE_TEMPLATE, **declared: Any) -> Any:
    """`--title-template`."""
    help = "Template that joins the title and the text of a document into one text."
    return option(help, default=default, check=check_title_template, **{"group": "Model", **declared})


def min_relevance_option(help: str = "Lowest grade that counts as relevant.") -> Any:
    """`--min-relevance`."""
    return option(help, default=1, minimum=1, group="Data")


def seed_option(what: str, **declared: Any) -> Any:
    """`--seed`; `what` is drawn from it."""
    return option(f"Random seed ({what}).", default=0, minimum=0, **{"group": "Machine", **declared})


def check_title_template(template: str) -> None:
    """Raises UsageError where a title template has no `{text}` or names anything but `{title}` and `{text}`."""
    rest = template.replace("{title}", "").replace("{text}", "")
    if "{text}" not in template or "{" in rest or "}" in rest:
        raise UsageError("--title-template", f"found '{template}'", "{text} and, where titles count, {title}")


def memory_option(**declared: Any) -> Any:
    """`--memory`."""
    help = "Memory limit for vectors and candidates, as in 4GB. Vectors beyond the limit are streamed from disk."
    return option(
        help,
        default=None,
        check=parse_memory,
        affects_output=False,
        hidden_default="no limit; vectors are memory-mapped",
        group="Precision and memory",
        **declared,
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
    return option(
        "Heap size of the Java virtual machine, as in 4g.",
        default=None,
        affects_output=False,
        hidden_default="a quarter of the machine's memory",
        group="Machine",
        **declared,
    )

"""What is printed is what was said: no string of a user is taken for markup, an emoji, or a command to the terminal."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import retrievo
from retrievo.cli import COMMANDS
from retrievo.retrieval.search_results import Answer, Hit
from retrievo.retrieval.snippets import Snippet
from retrievo.support import console
from retrievo.support.options import options_of

HOSTILE = "[/INST] [citation needed] [bold]x[/bold] :smile: \\[b] [link=u]"
Terminal = Callable[[Callable[[], object]], str]


def test_only_the_console_and_the_table_of_hits_know_rich() -> None:
    home = Path(retrievo.__file__).parent
    modules = [
        path for path in home.rglob("*.py") if re.search(r"^\s*(from|import) rich\b", path.read_text("utf-8"), re.M)
    ]
    found = {path.relative_to(home).as_posix() for path in modules}
    assert found == {"support/console.py", "retrieval/search_results.py"}


@pytest.mark.parametrize(
    "say",
    [
        console.note,
        console.warn,
        console.error,
        lambda text: console.summary("title", {"made": text}),
        lambda text: console.summary(text, {}),
        lambda text: console.summary("title", {}, text),
        lambda text: console.print_table(["run"], [[text]]),
        lambda text: console.print_table([text], [["x"]]),
        lambda text: console.print_table(["run"], [["x" * 80]], title=text),
        lambda text: Answer(text, (Hit(1, 1.0, "d", ""),)).print(),
        lambda text: Answer("q", (Hit(1, 1.0, "d", text),)).print(),
        lambda text: Answer("q", (Hit(1, 1.0, "d", "", Snippet(text, ((0, 3),))),)).print(),
        lambda text: Answer("q", (Hit(1, 1.0, "d", "", ranks={text: 1}),)).print(),
    ],
)
def test_a_terminal_shows_what_was_said(say: Callable[[str], None], terminal: Terminal) -> None:
    assert HOSTILE in terminal(lambda: say(HOSTILE))


def test_a_long_id_is_shown_as_it_is(terminal: Terminal) -> None:
    seen = terminal(lambda: Answer("q", (Hit(1, 1.0, "[/b]:smile:", ""),)).print())
    assert "[/b]:smile:" in seen


def test_a_bar_shows_its_description_and_what_is_told(terminal: Terminal) -> None:
    def work() -> None:
        with console.progress(f"importing {HOSTILE}", 2, "MB") as tick:
            tick(1, f"told {HOSTILE}")
            time.sleep(0.15)  # the bar is drawn ten times a second

    seen = terminal(work)
    assert f"importing {HOSTILE}" in seen
    assert f"told {HOSTILE}" in seen


def test_a_document_gives_no_commands_to_the_terminal(terminal: Terminal) -> None:
    evil = "before\x1b]0;title\x07\x1b[31mred\x9b2Jafter"
    seen = terminal(lambda: Answer(evil, (Hit(1, 1.0, "d", evil, Snippet(evil, ())),)).print())
    seen += terminal(lambda: console.note(evil))
    assert not set("\x1b\x07\x9b") & set(seen)
    assert seen.count("after") == 4


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_shown_as_it_is_declared(name: str, retrievo: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERMINAL_WIDTH", "400")
    monkeypatch.setenv("COLUMNS", "400")
    shown = "".join(retrievo(name, "--help-all").out.translate(dict.fromkeys(map(ord, "|\\"), " ")).split())
    for known in options_of(COMMANDS[name].config):
        assert "".join(known.declaration.help.replace("|", "").split()) in shown, known.name
    for example in COMMANDS[name].examples:
        assert "".join(example.replace("|", "").split()) in shown


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, module_retrievo: Callable) -> Path:
    """A folder with brackets in its name that holds a collection with brackets and other letters in its texts."""
    folder = tmp_path_factory.mktemp("here") / "[b] [draft]"
    folder.mkdir()
    texts = {"id": ["[/a] é"], "title": ["[red]Ünder[/red]"], "text": ["wing [citation needed] :smile: 日本"]}
    pq.write_table(pa.table(texts), folder / "corpus.parquet")
    pq.write_table(pa.table({"id": ["[/q]"], "text": ["[/INST] wing"]}), folder / "queries.parquet")
    for name in ("[b] a.trec", "[red] b.trec"):
        (folder / name).write_text("[/q] Q0 [/a] 1 2.5 x\n", encoding="utf-8")
    (folder / "qrels.txt").write_text("[/q] 0 [/a] 1\n", encoding="utf-8")
    (folder / "r.toml").write_text(
        '[steps."a"]\ncommand = "index"\ntype = "bm25"\ncorpus = "[c] corpus.parquet"\n', encoding="utf-8"
    )
    made = module_retrievo("index", "--type", "bm25", "--corpus", folder, "--output", folder / "bm25")
    assert made.code == 0, made.err
    return folder


COMMANDS_THAT_PRINT: dict[str, tuple[list[str], list[str]]] = {
    "search": (["search", "what is [/INST] wing", "--index", "bm25"],
               ["what is [/INST] wing", "[/a] é", "[red]Ünder[/red]", "wing [citation needed] :smile: 日本"]),
    "search of a run": (["search", "--index", "bm25", "--queries", ".", "--output", "[i] run.trec"], ["[i] run.trec"]),
    "evaluate": (["evaluate", "--run", "[b] a.trec", "[red] b.trec", "--qrels", "qrels.txt",
                  "--baseline", "[b] a.trec"],
                 ["[b] a", "[red] b", "compared with [b] a"]),
    "mine-negatives": (["mine-negatives", "--source", "bm25", "--corpus", ".", "--queries", ".", "--qrels", "qrels.txt",
                        "--output", "[i] n.parquet"], ["--negatives [i] n.parquet"]),
    "import": (["import", "text", ".", "--output", "[i] made"], ["[i] made", "[b] a.trec"]),
    "index": (["index", "--type", "bm25", "--corpus", ".", "--output", "[i] bm25"], ["[i] bm25"]),
    "run": (["run", "r.toml", "--dry-run"], ["[c] corpus.parquet"]),
    "an error": (["search", "wing", "--index", "[i] no"], ["[i] no: no such file"]),
    "a usage error": (["search", "wing", "--[/b]"], ["--[/b]"]),
}  # fmt: skip


@pytest.mark.parametrize("case", COMMANDS_THAT_PRINT)
def test_commands_show_names_and_texts_as_they_are(
    case: str, house: Path, terminal: Terminal, retrievo: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, shown = COMMANDS_THAT_PRINT[case]
    monkeypatch.chdir(house)
    seen = terminal(lambda: run_as_typed(arguments))
    assert "Traceback" not in seen
    for words in shown:
        assert words in seen, seen


def run_as_typed(arguments: list[str]) -> None:
    from retrievo.cli import app, several_flags
    from retrievo.support.commandline import expand_flags, run_app

    run_app(app, expand_flags(arguments, several_flags()))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_poor_terminal_shows_what_it_can(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    console.prepare_streams()
    answer = Answer("日本 é", (Hit(1, 1.0, "ü", "", Snippet("“x” 日本", ())),))
    answer.print()
    answer.print(as_json=True)
    console.print_table(["–"], [["é"]])
    out.flush()
    plain, _, rest = out.buffer.getvalue().decode(encoding).partition("\n")
    assert plain.endswith(r"\u201cx\u201d \u65e5\u672c")
    told, _ = json.JSONDecoder().raw_decode(rest)
    assert (told["question"], told["hits"][0]["snippet"]) == ("日本 é", "“x” 日本")


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_search_ends_well_where_the_terminal_is_ascii(house: Path, more: list[str]) -> None:
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONIOENCODING": "ascii",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }
    command = [sys.executable, "-m", "retrievo", "search", "--interactive", "--index", str(house / "bm25"), *more]
    done = subprocess.run(command, input="wing 日本\n".encode(), capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr.decode()
    assert b"citation needed" in done.stdout
    if more:
        assert json.loads(done.stdout)["question"] == "wing 日本"


def test_under_the_library_everything_is_logged_and_nothing_is_printed(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tell() -> None:
        console.note("a note %s")
        console.warn("a warning")
        console.summary("made", {"made": "x", "took": "1 s"}, "retrievo search")
        with console.progress("counting", 2, "texts") as tick:
            tick(2)

    monkeypatch.setattr(console._LogLines, "FIRST", 0.0)
    with caplog.at_level(logging.INFO, "retrievo"):
        tell()
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING", "INFO", "INFO"]
    assert caplog.messages[:3] == ["a note %s", "a warning", "made: made x; took 1 s"]
    assert caplog.messages[3].startswith("counting: 2 of 2 texts, ")
    assert capfd.readouterr() == ("", "")
    caplog.clear()
    with console.shown():
        tell()
    assert caplog.messages == []
    assert "warning: a warning" in capfd.readouterr().err


def test_a_warning_that_nobody_listens_to_is_not_printed() -> None:
    script = "from retrievo.support import console; console.warn('x')"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert (ran.stdout, ran.stderr) == (b"", b"")


def test_piped_progress_tells_the_time_left_within_ten_seconds(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with console.shown(), console.progress("encoding", 1_000, "texts", done=400) as tick:
        for _ in range(40):
            now += 1
            tick(5)
    told = capfd.readouterr().err.splitlines()
    assert told == [
        "encoding: 425 of 1,000 texts, 5.0/s, 1 min 55 s left",
        "encoding: 575 of 1,000 texts, 5.0/s, 1 min 25 s left",
    ]


def test_progress_of_unknown_length_tells_no_time_left(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console._LogLines, "FIRST", 0.0)
    with console.shown(), console.progress("reading", None, "rows") as tick:
        tick(7, "loss 1.0")
    assert capfd.readouterr().err == "reading: 7 rows, loss 1.0\n"

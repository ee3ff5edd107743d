"""Every help text stands alone, and the first screen of a command holds what a newcomer needs."""

from __future__ import annotations

import re

import pytest

from retrievo import cli
from retrievo.cli import BEGIN, HELP
from retrievo.commands.table import COMMANDS
from retrievo.retrieval.searcher import KINDS
from retrievo.support.help import first_sentence, meaning, overview, sections, short_help, styled, whole_help
from retrievo.support.options import GROUPS, Option, options_of

# words that point at a text that is not there, and habits of an older style
WORDS = r"\b(they|them|these|those|this one|he|she|his|her|their|theirs|such|told|shall)\b"
ALL = [(name, option) for name, command in COMMANDS.items() for option in options_of(command.config)]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_text_stands_alone(name: str) -> None:
    known = options_of(COMMANDS[name].config)
    problems = [f"{option.flag}: {option.declaration.help}" for option in known if not _fine(option)]
    assert problems == []


def _fine(option: Option) -> bool:
    text = option.declaration.help
    lowered = text.replace("such as", "").lower()
    begins = text[0].isupper()
    return begins and text.endswith(".") and len(text.split()) >= 4 and not re.search(WORDS, lowered)


def test_every_option_has_a_panel_and_says_when_it_applies() -> None:
    assert {option.declaration.group for _, option in ALL} <= set(GROUPS)
    rules = [meaning(option) for _, option in ALL if option.rule]
    assert len(rules) > 80
    assert all(re.search(r"\. Applies only (with|without|to) .*\.$", text) for text in rules)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_short_help_is_one_screen_and_leads_to_the_rest(name: str) -> None:
    command = COMMANDS[name]
    known = options_of(command.config)
    short = short_help(name, command.help, command.examples, known, 80)
    lines = short.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert f"retrievo {name} --help-all" in lines[-1]
    assert all(option.flag in short for option in known if option.required)
    assert "[default: ()]" not in short + whole_help(name, command.help, command.examples, known, 80)


def test_the_overview_has_each_command_on_one_line_of_a_small_screen() -> None:
    rows = [(command.group, name, command.help) for name, command in COMMANDS.items()]
    lines = overview(HELP, BEGIN, rows, 80).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    for group, name, text in rows:
        assert any(f"{name}  " in line and line.endswith(first_sentence(text)) for line in lines)
        assert sum(line.startswith(group) for line in lines) == 1


def test_without_arguments_the_overview_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["retrievo"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    shown = capsys.readouterr()
    assert (ended.value.code, shown.err) == (0, "")
    assert shown.out.startswith("Usage: retrievo COMMAND [OPTIONS]\n\n")


def test_colors_mark_headings_and_names_and_change_no_letter() -> None:
    command = COMMANDS["search"]
    text = short_help("search", command.help, command.examples, options_of(command.config), 60)
    painted = styled(text)
    assert re.sub(r"\033\[\d+m", "", painted) == text
    marked = re.findall(r"\033\[\d+m(.*?)\033\[0m", painted)
    shown = [option.flag for option in options_of(command.config) if option.declaration.shown]
    assert sorted(marked) == sorted(["Usage", "Common options", *shown])


def test_a_newcomer_sees_train_on_one_screen() -> None:
    command = COMMANDS["train"]
    short = short_help("train", command.help, command.examples, options_of(command.config), 80)
    assert len(short.splitlines()) <= 24
    for flag in ("--model", "--negatives", "--loss", "--epochs", "--batch-size", "--learning-rate", "--output"):
        assert f"  {flag} " in short


@pytest.mark.parametrize("width", [80, 110])
def test_the_whole_help_has_every_option_once_and_fits(width: int) -> None:
    for name, command in COMMANDS.items():
        known = options_of(command.config)
        text = whole_help(name, command.help, command.examples, known, width)
        assert max(map(len, text.splitlines())) <= width
        assert sorted(one.name for _, members in sections(known) for one in members) == sorted(o.name for o in known)
        assert all(one.flag.removeprefix("--") in text for one in known)


def test_the_first_sentence_ends_at_its_period() -> None:
    assert first_sentence("Metrics, as in 0.5 or a.b. More of it.") == "Metrics, as in 0.5 or a.b."


def test_options_of_some_indexes_are_named_by_the_rows_of_those() -> None:
    named = {name for row in KINDS.values() for name in (*row.settings, *row.capabilities)}
    of_index = {option.name for _, option in ALL if option.declaration.of_index}
    assert len(of_index) > 8
    assert of_index <= named

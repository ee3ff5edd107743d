"""An option is declared once, and every layer of settings is converted, checked and named."""

from __future__ import annotations

import tomllib
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path

import pytest
from hypothesis import given as given_by_hypothesis
from hypothesis import settings
from hypothesis import strategies as st

from retrievo.support.conditions import only_where, only_with, only_without
from retrievo.support.errors import UsageError
from retrievo.support.options import Options, option, options_of
from retrievo.support.settings import Layer, resolve, settings_layers


@dataclass(frozen=True, kw_only=True)
class Example(Options):
    source: Path | None = option("Where from.", default=None, alternative="source")
    question: str | None = option("What to ask.", default=None, alternative="source", positional=True)
    depth: int = option("How deep.", default=10, minimum=1)
    rate: float = option("How fast.", default=0.5, above=0, maximum=1)
    kind: str = option("Which.", default="flat", choices=("flat", "bm25"))
    k1: float | None = option("Saturation.", default=None, applies=only_with("kind", "bm25"))
    metrics: tuple[str, ...] = option("Measures.", default=("mrr@10",), several=True)
    dims: tuple[int, ...] = option("Sizes.", default=(64,))
    threads: int | None = option("Threads.", default=None, affects_output=False)
    titles: bool = option("Titles too.", default=False, applies=only_with("source"))
    shown: int = option("How many to show.", default=3, affects_output=False, applies=only_without("source"))
    needed: str = option("Must be there.")


def given(**values: object) -> Layer:
    return Layer("flag", {"needed": "x", **values}, typed=True)


def test_a_flag_wins_over_toml_and_toml_over_the_default() -> None:
    resolved = resolve(Example, [given(depth=3), Layer("retrievo.toml [x]", {"depth": 7, "rate": 1})])
    assert (resolved.config.depth, resolved.config.rate, resolved.config.kind) == (3, 1.0, "flat")
    assert resolved.sources["depth"] == "flag"
    assert resolved.sources["rate"] == "retrievo.toml [x]"
    assert resolved.sources["kind"] == "default"


def test_positionals_come_first() -> None:
    assert options_of(Example)[0].name == "question"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"depth": -1}, "--depth: found -1; expected at least 1"),
        ({"rate": 0.0}, "--rate: found 0.0; expected more than 0"),
        ({"rate": 2.0}, "--rate: found 2.0; expected at most 1"),
        ({"kind": "flatt"}, "--kind: found 'flatt'; did you mean 'flat'?"),
        ({"k1": 0.9}, "--k1: applies only with --kind bm25"),
        ({"titles": True}, "--titles: applies only with --source"),
        (
            {"shown": 3, "source": "a.parquet"},
            "--shown: applies only without --source",
        ),
        ({"dims": ["64", "a"]}, "--dims: found 'a'; expected a whole number"),
        ({"needed": None}, "--needed: is needed but was given neither as a flag nor in a TOML file"),
    ],
)
def test_what_was_typed_wrong_is_named_as_it_was_typed(values: dict, message: str) -> None:
    values = {"needed": "x"} | values
    with pytest.raises(UsageError) as problem:
        resolve(Example, [Layer("flag", {k: v for k, v in values.items() if v is not None}, typed=True)])
    assert str(problem.value) == message


def test_an_option_beside_its_partner_applies_whatever_the_partner_says() -> None:
    with_source = resolve(Example, [given(source="a.parquet", titles=True)]).config
    assert (with_source.titles, resolve(Example, [given(shown=5)]).config.shown) == (True, 5)


def test_an_unknown_key_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match=r"retrievo.toml \[x\]: unknown key 'dept'; did you mean 'depth'\?"):
        resolve(Example, [given(), Layer("retrievo.toml [x]", {"dept": 3})])


def test_a_wrong_type_in_toml_names_the_key() -> None:
    with pytest.raises(UsageError, match=r"retrievo.toml \[x\] depth: found 'ten'; expected a whole number"):
        resolve(Example, [given(), Layer("retrievo.toml [x]", {"depth": "ten"})])
    with pytest.raises(UsageError, match="expected a whole number"):
        resolve(Example, [given(), Layer("retrievo.toml [x]", {"depth": True})])


def test_a_toml_key_that_does_not_apply_is_a_warning() -> None:
    resolved = resolve(Example, [given(), Layer("retrievo.toml [x]", {"k1": 0.9})])
    assert resolved.config.k1 is None
    assert resolved.warnings == ["retrievo.toml [x]: k1 is ignored; it applies only with --kind bm25"]


def test_two_alternatives_in_one_place_are_an_error() -> None:
    with pytest.raises(UsageError, match="--source: is given together with QUESTION; expected one of them"):
        resolve(Example, [given(question="why?", source="q.parquet")])


def test_a_typed_alternative_displaces_the_one_in_toml() -> None:
    resolved = resolve(Example, [given(question="why?"), Layer("retrievo.toml [x]", {"source": "q.parquet"})])
    assert (resolved.config.question, resolved.config.source) == ("why?", None)


@pytest.mark.parametrize("metrics", ["mrr@10,map", ["mrr@10", "map"], ["mrr@10,map"]])
def test_list_options_take_one_string_commas_and_lists(metrics: object) -> None:
    assert resolve(Example, [given(metrics=metrics)]).config.metrics == ("mrr@10", "map")


def test_a_file_whose_name_has_a_comma_is_one_value(tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Files(Options):
        run: tuple[Path, ...] = option("Runs.", default=())

    odd = tmp_path / "a,b.parquet"
    odd.touch()
    assert resolve(Files, [Layer("flag", {"run": [odd]}, typed=True)]).config.run == (odd,)


def test_the_library_checks_as_the_command_line_does() -> None:
    with pytest.raises(UsageError, match="--depth: found 0"):
        Example(needed="x", depth=0)
    with pytest.raises(FrozenInstanceError):
        Example(needed="x").depth = 3  # type: ignore[misc]


def test_the_library_takes_text_for_paths_and_lists_for_several() -> None:
    made = Example(needed="x", source="a/b", metrics=["map"], rate=1)  # type: ignore[arg-type]
    assert (made.source, made.metrics, made.rate) == (Path("a/b"), ("map",), 1.0)
    with pytest.raises(UsageError, match="--depth: found 'ten'; expected a whole number"):
        Example(needed="x", depth="ten")  # type: ignore[arg-type]


def test_the_library_refuses_what_does_not_apply_unless_it_is_the_default() -> None:
    with pytest.raises(UsageError, match="--k1: applies only with --kind bm25"):
        Example(needed="x", k1=1.2)
    assert Example(needed="x", k1=None, shown=3, source="a").shown == 3  # type: ignore[arg-type]


def test_conditions_say_what_they_check() -> None:
    losses = only_with("loss", "kl", "margin-mse", lambda: ["ranknet"])
    both = losses & only_without("no_titles")
    assert str(both) == "with --loss kl, margin-mse or ranknet and without --no-titles"
    assert both.holds({"loss": ("infonce", "ranknet"), "no_titles": False})
    assert not both.holds({"loss": ("infonce",), "no_titles": False})
    assert not both.holds({"loss": ("kl",), "no_titles": True})
    assert both.holds({"loss": ("kl",)}), "a part of a Config does not restrict what it does not know"
    every = both & only_with("source")
    assert str(every) == "with --loss kl, margin-mse or ranknet, without --no-titles and with --source"
    several = only_where("with several", "index", "run", holds=lambda index, run: len(index) + len(run) > 1)
    assert [several.holds({"index": "a", "run": run}) for run in ("", "b")] == [False, True]
    assert only_with("source").holds({"source": "bm25:10"})
    assert only_with("source", "bm25").holds({"source": ("bm25:10",)})


def test_a_message_tells_the_rule_that_is_broken_alone() -> None:
    both = only_with("loss") & only_with("pool").otherwise("draws from a pool", "pass --pool POOL")
    assert both.broken({"loss": "kl", "pool": "p"}) is None
    broken = [both.broken(chosen) for chosen in ({"loss": None, "pool": None}, {"loss": "kl", "pool": None})]
    assert [rule.refused for rule in broken if rule] == [
        ("applies only with --loss", None),
        ("draws from a pool", "pass --pool POOL"),
    ]


def test_what_lacks_something_is_refused_in_a_file_and_what_is_for_other_cases_is_ignored() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Draws(Options):
        pool: str | None = option("A pool.", default=None)
        bins: int = option("Bins.", default=1, applies=only_with("pool").otherwise("draws from a pool"))
        depth: int = option("A depth.", default=1, applies=only_with("pool"))

    ignored = resolve(Draws, [Layer("retrievo.toml", {"depth": 2})])
    assert (ignored.config.depth, len(ignored.warnings)) == (1, 1)
    with pytest.raises(UsageError, match="--bins: draws from a pool"):
        resolve(Draws, [Layer("retrievo.toml", {"bins": 2})])


def test_the_record_holds_what_affects_the_output_and_applies() -> None:
    record = Example(needed="x", threads=4).record()
    assert record == {
        "depth": 10,
        "rate": 0.5,
        "kind": "flat",
        "metrics": ["mrr@10"],
        "dims": [64],
        "needed": "x",
    }


def test_show_config_is_toml_that_resolves_to_the_same_config() -> None:
    resolved = resolve(Example, [given(metrics=["map", "p@5"], kind="bm25", k1=1.2)])
    shown = tomllib.loads(resolved.show("x"))["x"]
    assert resolve(Example, [Layer("again", shown)]).config == resolved.config


ODD = st.text("a #'\"\\\n\r\t\x00\x1b\x7f\x85\u2028é日😀", max_size=20)


@settings(max_examples=50)
@given_by_hypothesis(ODD, st.floats(0, 1, exclude_min=True), ODD)
def test_whatever_the_values_show_config_reads_back_to_them(needed: str, rate: float, source: str) -> None:
    layer = Layer(f"{source}\n{source}", {"needed": needed, "rate": rate, "metrics": ["a\nb", '\x7f"\\']})
    resolved = resolve(Example, [layer])
    shown = tomllib.loads(resolved.show("x"))["x"]
    assert resolve(Example, [Layer("again", shown)]).config == resolved.config


def test_paths_in_toml_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.toml").write_text('[x]\nsource = "q.parquet"\n[y]\n')
    monkeypatch.chdir(tmp_path)
    layers = settings_layers(Example, "x", ["x", "y"], Path("a/b.toml"))
    assert resolve(Example, [given(), *layers]).config.source == Path("a/q.parquet")


def test_an_unknown_section_is_an_error_with_a_suggestion(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text("[serch]\n")
    with pytest.raises(UsageError, match=r"unknown section \[serch\]; did you mean 'search'\?"):
        settings_layers(Example, "search", ["search", "index"], tmp_path / "b.toml")

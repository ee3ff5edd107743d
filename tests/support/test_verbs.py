"""A verb takes its Config or the Config's fields, with the defaults and the checks of the command line."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from retrievo.commands.export import ExportConfig, export
from retrievo.support.conditions import only_with
from retrievo.support.errors import UsageError
from retrievo.support.options import Options, option
from retrievo.support.settings import Layer
from retrievo.support.verbs import verb


@dataclass(frozen=True, kw_only=True)
class BakeConfig(Options):
    """Options of a verb that is made up."""

    cake: Path = option("What to bake.")
    tin: str = option("Form of the tin.", default="round", choices=("round", "square"))
    heat: int = option("Degrees.", default=180, minimum=50)
    corners: int = option("Corners of the tin.", default=4, minimum=3, applies=only_with("tin", "square"))
    spices: tuple[str, ...] = option("Spices.", default=())

    @classmethod
    def manifest_layers(cls, typed: Mapping[str, Any]) -> list[Layer]:
        return [Layer("the recipe", {"heat": 160, "corners": 5})] if typed.get("cake") == "stollen" else []


@verb(BakeConfig)
def bake(config: BakeConfig) -> BakeConfig:
    """Bakes."""
    return config


def test_a_config_and_its_fields_are_one_call() -> None:
    config = BakeConfig(cake=Path("cheese"), heat=200, spices=("anise",))
    assert bake(config) is config
    assert bake(cake="cheese", heat=200, spices=["anise"]) == config
    assert bake(cake="cheese", heat=None).heat == 180


def test_what_lies_on_disk_gives_defaults_and_what_does_not_apply_is_told(said: Callable[[], str]) -> None:
    assert bake(cake="stollen").heat == 160
    assert said().startswith("the recipe: corners is ignored; it applies only with")
    assert bake(cake="stollen", heat=100).heat == 100


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bake(cake="cheese", heet=200), r"bake\(\): unknown key 'heet'; did you mean 'heat'\?"),
        (lambda: bake(cake="cheese", heat=20), "--heat: found 20; expected at least 50"),
        (lambda: bake(cake="cheese", tin="squar"), "--tin: found 'squar'; did you mean 'square'"),
        (lambda: bake(cake="cheese", corners=4), "--corners: applies only with --tin square"),
        (lambda: bake(heat=200), "--cake: is needed"),
        (lambda: bake(BakeConfig(cake=Path("cheese")), heat=200), r"bake\(\): was given a Config and 'heat'"),
        (lambda: bake(ExportConfig(embeddings=Path("e"), output=Path("o"))), "was given ExportConfig; expected a Bake"),
        (lambda: bake("cheese"), "was given str; expected a BakeConfig, or its fields by name"),
    ],
)
def test_what_is_wrong_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()


def test_a_settings_file_that_lies_here_is_the_command_lines_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "retrievo.toml").write_text("[bake]\nheat = 90\n")
    assert bake(cake="cheese").heat == 180


def test_help_shows_the_fields_and_other_processes_find_the_verb() -> None:
    assert list(inspect.signature(bake).parameters) == ["config", "cake", "tin", "heat", "corners", "spices"]
    assert bake.__doc__ == "Bakes."
    assert pickle.loads(pickle.dumps(export)) is export

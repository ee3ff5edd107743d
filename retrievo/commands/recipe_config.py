"""Options of `retrievo run`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from retrievo.data.options import output_option
from retrievo.support.errors import UsageError
from retrievo.support.options import Options, option


def _check_setting(text: str) -> None:
    if not re.fullmatch(r"[\w-]+=.*", text):
        raise UsageError("--set", f"found '{text}'", "NAME=VALUE, as in seed=1")


@dataclass(frozen=True, kw_only=True)
class RunConfig(Options):
    """Options of `retrievo run`."""

    file: Path = option(
        "Recipe to run. A TOML file whose steps are commands.", positional=True, decides_output=True, group="Data"
    )
    output: Path | None = output_option(
        "Folder to write the outputs of all steps to.",
        default=None,
        shown=True,
        hidden_default="the recipe's name, next to the recipe",
    )
    set_: tuple[str, ...] = option(
        "Values of the recipe's variables, as in seed=1.",
        default=(),
        several=True,
        check=_check_setting,
        shown=True,
        group="Data",
    )
    only: tuple[str, ...] = option(
        "Names of the steps to run. All other steps are left alone.",
        default=(),
        several=True,
        shown=True,
        hidden_default="all steps",
        group="Data",
    )
    force: bool = option(
        "Redo every finished step whose options or inputs changed.", default=False, decides_output=True, group="Output"
    )
    redo: tuple[str, ...] = option(
        "Names of finished steps to redo where options or inputs changed.",
        default=(),
        several=True,
        decides_output=True,
        group="Output",
    )
    dry_run: bool = option(
        "Print what would be done, and why, without doing it.", default=False, shown=True, group="Output"
    )

    def check(self) -> None:
        if self.force and self.redo:
            raise UsageError("--redo", "is given together with --force, which means every step", "one of them")
        if self.file.suffix != ".toml":
            raise UsageError("FILE", f"found '{self.file}'", "a recipe that ends in .toml")

    @property
    def home(self) -> Path:
        """The folder of the outputs, absolute."""
        return Path(os.path.abspath(self.output or self.file.with_suffix("")))

"""Docstrings as a dataset: what becomes a document and a query, what is left out, and that nothing is run."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from retrievo.commands.demo_corpus import PACKAGES, SPLITS, Package, installed_packages, make_dataset
from retrievo.data.corpus import Corpus, Queries
from retrievo.data.qrels import Qrels
from retrievo.support.artifact import Manifest
from retrievo.support.errors import RetrievoError

RUDDER = '''"""How a ship is steered by hand.

The helmsman turns the wheel and the rudder follows it.
"""
raise SystemExit("somebody imported this")


class Rudder:
    """A flat piece hinged at
    the stern of a ship.

    It swings to either side, at most
    thirty-five degrees.

    Larger angles stall it.
    """

    def turn(self, degrees):
        """Turn the blade to one side.

        Positive angles are those to starboard.
        """

    @property
    def angle(self):
        """The angle of the blade now.

        Measured from the line of the keel.
        """

    @angle.setter
    def angle(self, value):
        """Set the angle of the blade.

        The same as turning it by hand.
        """


if True:
    try:
        def stall(angle):
            """Say whether a rudder has stalled.

            Beyond thirty-five degrees the flow separates.
            """

            def separated():
                """Whether the flow has come off.

                A hidden detail of the one above.
                """
    finally:
        pass
'''
LEFT_OUT = '''
def short_summary():
    """Too short.

    A body that has more than five words in it.
    """

def long_summary():
    """SUMMARY

    A body that has more than five words too.
    """

def signature():
    """signature(first, second=None, *others) -> None

    A body below what is only a signature line.
    """

def short_body():
    """A summary of more than four words.

    But little more.
    """

def no_body():
    """A summary of more than four words that stands alone."""

def repeated():
    """The same body as another one has.

    Positive angles  are those
    to starboard.
    """
'''.replace("SUMMARY", "word " * 41)
SHARED = '''
def one():
    """Return what the crew decided on.

    The first of two that share a summary.
    """

def two():
    """Return what the  crew DECIDED on.

    The second of two that share a summary.
    """

def echo():
    """Sound the horn of the ship.

    Example: sound the horn of the ship twice.
    """
'''


def write(folder: Path, files: dict[str, str]) -> Package:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return Package(folder.name, "1.0", folder, folder.parent)


@pytest.fixture
def ship(tmp_path: Path) -> Package:
    files = {
        "__init__.py": '"""What a ship is made of.\n\nAnd how all of it is moved."""',
        "rudder.py": RUDDER,
        "left/out.py": LEFT_OUT,
        "shared.py": SHARED,
        "template.py": "def {{ name }}(:",
        "tests/test_rudder.py": '"""Test that the rudder turns well.\n\nNo test becomes a document of this dataset."""',
        "notes.txt": "no Python",
    }
    return write(tmp_path / "ship", files)


def documents(folder: Path) -> dict[str, str]:
    return {row["id"]: row["text"] for row in pq.read_table(folder / "corpus.parquet").to_pylist()}


def asked(folder: Path) -> dict[str, str]:
    """The query of each document."""
    queries = Queries(folder)
    texts = dict(zip(queries.ids.to_pylist(), queries.texts, strict=True))
    pairs = [row for split in SPLITS for row in judged(folder, split)]
    assert len(pairs) == len(texts)
    return {row["doc_id"]: texts[row["query_id"]] for row in pairs}


def judged(folder: Path, split: str) -> list[dict]:
    return pq.read_table(folder / "qrels" / f"{split}.parquet").to_pylist()


def test_a_document_is_what_follows_the_summary_line_and_the_summary_is_its_query(
    ship: Package, tmp_path: Path
) -> None:
    make_dataset(tmp_path / "out", [ship])
    found, queries = documents(tmp_path / "out"), asked(tmp_path / "out")
    assert found["ship.rudder.Rudder"].splitlines() == [
        "It swings to either side, at most",
        "thirty-five degrees.",
        "",
        "Larger angles stall it.",
    ]
    assert queries["ship.rudder.Rudder"] == "A flat piece hinged at the stern of a ship."
    methods = ["rudder.Rudder.turn", "rudder.Rudder.angle", "rudder.Rudder.angle#2"]
    others = ["rudder.stall", "rudder.stall.separated", "shared.one", "shared.two", "shared.echo"]
    names = ["rudder", "rudder.Rudder", *methods, *others]
    assert set(found) == {"ship", *(f"ship.{name}" for name in names)}


def test_no_document_gives_its_query_away(ship: Package, tmp_path: Path) -> None:
    make_dataset(tmp_path / "out", [ship])
    assert pq.read_schema(tmp_path / "out" / "corpus.parquet").names == ["id", "text"]
    found, queries = documents(tmp_path / "out"), asked(tmp_path / "out")
    assert not any(query.lower() in " ".join(found[name].lower().split()) for name, query in queries.items())
    assert "ship.shared.echo" in found
    assert "ship.shared.echo" not in queries


def test_a_summary_that_several_share_asks_for_none_of_them(ship: Package, tmp_path: Path) -> None:
    make_dataset(tmp_path / "out", [ship])
    assert {"ship.shared.one", "ship.shared.two"} <= set(documents(tmp_path / "out"))
    assert {"ship.shared.one", "ship.shared.two"}.isdisjoint(asked(tmp_path / "out"))


def test_what_is_left_out_is_counted(ship: Package, tmp_path: Path, said: Callable[[], str]) -> None:
    stats = make_dataset(tmp_path / "out", [ship]).stats
    assert stats["left_out"] == {
        "unreadable files": 1,
        "without a body": 2,
        "without a summary line": 3,
        "repeated bodies": 1,
        "queries of several documents, or repeated in the document": 3,
    }
    assert (stats["documents"], stats["queries"], sum(stats["qrels"].values())) == (11, 8, 8)
    told = said()
    assert "11 documents, 8 queries (train" in told
    assert "without a summary line 3" in told


@pytest.fixture
def fleet(tmp_path: Path) -> Package:
    """300 modules with two docstrings each."""
    text = '"""Summary number {0} of the fleet.\n\nBody number {0} has five words."""\n'
    text += 'def f():\n    """Function number {0} of the fleet.\n\n    What number {0} does is this."""\n'
    return write(tmp_path / "fleet", {f"m{number}.py": text.format(number) for number in range(300)})


def test_a_module_belongs_to_one_split(fleet: Package, tmp_path: Path) -> None:
    make_dataset(tmp_path / "out", [fleet])
    modules = {split: {row["doc_id"].removesuffix(".f") for row in judged(tmp_path / "out", split)} for split in SPLITS}
    assert len(set().union(*modules.values())) == sum(map(len, modules.values())) == 300
    assert 25 <= len(modules["test"]) <= 65  # 45 expected, deviation 6.2
    assert 4 <= len(modules["dev"]) <= 30  # 15 expected, deviation 3.8
    assert len(judged(tmp_path / "out", "test")) == 2 * len(modules["test"])
    make_dataset(tmp_path / "other", [fleet], seed=1)
    assert judged(tmp_path / "other", "test") != judged(tmp_path / "out", "test")
    assert documents(tmp_path / "other") == documents(tmp_path / "out")


def test_each_split_has_its_queries_in_a_table_of_its_own(fleet: Package, tmp_path: Path) -> None:
    make_dataset(tmp_path / "out", [fleet])
    for split in SPLITS:
        queries = Queries(tmp_path / "out" / "queries" / f"{split}.parquet")
        assert queries.ids.to_pylist() == [row["query_id"] for row in judged(tmp_path / "out", split)]


def test_the_same_packages_give_the_same_bytes(fleet: Package, ship: Package, tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_dataset(tmp_path / name, [fleet, ship])
    names = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.parquet")]
    assert len(names) == 8
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)


def test_finished_work_is_found_again_unless_a_package_has_changed(ship: Package, tmp_path: Path) -> None:
    made = make_dataset(tmp_path / "out", [ship])
    assert made.config["packages"] == {"ship": "1.0"}
    assert make_dataset(tmp_path / "out", [ship]) == Manifest.read(tmp_path / "out", "dataset")
    newer = ship._replace(version="1.1")
    with pytest.raises(RetrievoError, match=r"is finished, but packages was .*1\.0.* and is now .*1\.1.*--force"):
        make_dataset(tmp_path / "out", [newer])
    assert make_dataset(tmp_path / "out", [newer], force=True).config["packages"] == {"ship": "1.1"}


def test_the_folder_is_a_dataset_for_every_reader(fleet: Package, tmp_path: Path) -> None:
    make_dataset(tmp_path / "out", [fleet])
    assert len(Corpus(tmp_path / "out")) == len(Queries(tmp_path / "out")) == 600
    assert Qrels.read(tmp_path / "out").table.to_pylist() == judged(tmp_path / "out", "test")
    settings = tomllib.loads((tmp_path / "out" / "retrievo.toml").read_text())
    assert all((tmp_path / "out" / path).is_file() for section in settings.values() for path in section.values())


def test_packages_without_documentation_are_an_error_and_leave_nothing_finished(tmp_path: Path) -> None:
    with pytest.raises(RetrievoError, match="the packages hold no documentation"):
        make_dataset(tmp_path / "out", [write(tmp_path / "bare", {"x.py": "x = 1\n"})])
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_installed_packages_are_found_and_not_imported() -> None:
    found = {package.name: package for package in installed_packages()}
    assert (found["python"].folder / "json" / "decoder.py").is_file()
    assert (found["numpy"].folder / "linalg" / "__init__.py").is_file()
    assert set(found) <= {"python", *PACKAGES}
    probe = "import sys; from retrievo.commands.demo_corpus import installed_packages; installed_packages(); "
    probe += "print({'scipy', 'matplotlib', 'networkx', 'sklearn'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True).stdout == "set()\n"

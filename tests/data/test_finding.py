"""Which files a path means: one table where that is plain, else an error that names what lies there."""

from __future__ import annotations

from pathlib import Path

import pytest

from retrievo.data.finding import NOUNS, table_files, training_split
from retrievo.support.errors import RetrievoError
from retrievo.support.publishing import manifest_beside


def folder(home: Path, *names: str) -> Path:
    for name in names:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).touch()
    return home


def found(home: Path, noun: str) -> list[str]:
    return [path.relative_to(home).as_posix() for path in table_files(home, noun)]


@pytest.mark.parametrize("noun", NOUNS)
def test_a_file_is_itself_and_a_folder_has_the_file_called_after_the_noun(noun: str, tmp_path: Path) -> None:
    folder(tmp_path, *(f"{other}.parquet" for other in NOUNS), "part-0.parquet")
    assert found(tmp_path, noun) == [f"{noun}.parquet"]
    assert table_files(tmp_path / "part-0.parquet", noun) == [tmp_path / "part-0.parquet"]


def test_a_name_that_only_begins_like_a_noun_is_not_called_after_it(tmp_path: Path) -> None:
    folder(tmp_path, "corpuscle.parquet", "queries-0.parquet", "queries.part1.parquet")
    assert found(tmp_path, "corpus") == ["corpuscle.parquet"]
    (tmp_path / "corpuscle.parquet").unlink()
    assert found(tmp_path, "queries") == ["queries-0.parquet", "queries.part1.parquet"]


def test_files_of_both_kinds_are_never_joined(tmp_path: Path) -> None:
    folder(tmp_path, "corpus-0.parquet", "more.parquet")
    with pytest.raises(RetrievoError, match=r"holds corpus-0\.parquet beside more\.parquet"):
        table_files(tmp_path, "corpus")


@pytest.mark.parametrize(
    ("names", "one_table"),
    [
        (("part-0", "part-1", "part-2"), True),
        (("part-1", "part-2"), True),
        (("part-1", "part-3"), False),
        (("dl-2019", "dl-2020"), False),
        (("dev", "test"), False),
        (("dev",), True),
    ],
)
def test_numbers_that_count_make_shards_of_one_table(names: tuple[str, ...], one_table: bool, tmp_path: Path) -> None:
    files = [f"{name}.parquet" for name in names]
    folder(tmp_path, *files)
    assert found(tmp_path, "corpus") == files  # texts in several files are one corpus
    if one_table:
        assert found(tmp_path, "run") == files
    else:
        with pytest.raises(RetrievoError, match="holds several tables of run"):
            table_files(tmp_path, "run")


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (("dev", "test", "train"), ["test"]),
        (("dev.small", "train"), ["dev.small"]),
        (("test-0", "test-1", "dev"), ["test-0", "test-1"]),
        (("test", "test-hard"), ["test"]),
    ],
)
def test_judgments_of_a_dataset_folder_are_test_else_dev(names: tuple[str, ...], split: list, tmp_path: Path) -> None:
    folder(tmp_path, *(f"qrels/{name}.parquet" for name in names))
    assert found(tmp_path, "qrels") == [f"qrels/{name}.parquet" for name in split]


def test_a_pattern_is_its_files_in_order_without_the_manifests_beside_them(tmp_path: Path) -> None:
    folder(tmp_path, "b.trec", "a.trec", manifest_beside(Path("a.trec")).name)
    assert [path.name for path in table_files(tmp_path / "*.trec*", "run")] == ["a.trec", "b.trec"]


def test_what_is_not_there_is_named_with_what_is(tmp_path: Path) -> None:
    with pytest.raises(RetrievoError, match="no such file or folder; expected the corpus"):
        table_files(tmp_path / "nowhere", "corpus")
    with pytest.raises(RetrievoError, match=r"holds no Parquet file for the corpus \(it holds queries.parquet\)"):
        table_files(folder(tmp_path, "queries.parquet"), "corpus")


def test_a_dataset_folder_stands_for_its_training_judgments_where_a_model_learns(tmp_path: Path) -> None:
    """Its test split would be learned and then evaluated on."""
    (tmp_path / "qrels").mkdir()
    assert training_split(tmp_path) == tmp_path / "qrels" / "train.parquet"
    for path in (tmp_path / "qrels" / "test.parquet", tmp_path / "judged.tsv", tmp_path / "qrels"):
        assert training_split(path) == path

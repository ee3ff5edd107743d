"""An output is absent, unfinished or whole; running again does nothing, the same or is refused."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from retrievo.support.artifact import BEGIN, MANIFEST, Input, Manifest, Output, has_manifest
from retrievo.support.errors import RetrievoError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.txt"
    path.write_text("one")
    return path


def output(path: Path, source: Path, *, depth: int = 10, **more: Any) -> Output:
    return Output(path, "dataset", {"depth": depth}, {"source": Input.of(source)}, **more)


def make(made: Output, text: str = "data", name: str = "data.txt") -> Manifest:
    assert made.already_finished() is None
    with made.build() as folder:
        (folder / name).write_text(text)
        return made.finish({"rows": 1})


def test_a_finished_output_has_a_manifest_and_nothing_else_of_ours(tmp_path: Path, source: Path) -> None:
    make(output(tmp_path / "out", source))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["data.txt", MANIFEST]
    manifest = Manifest.read(tmp_path / "out", "dataset")
    assert manifest.config == {"depth": 10}
    assert manifest.stats == {"rows": 1}
    assert manifest.files["data.txt"]["bytes"] == 4
    assert manifest.inputs["source"]["path"] == "source.txt"
    assert not (tmp_path / "out.partial").exists()


def test_the_same_work_again_is_already_finished(tmp_path: Path, source: Path) -> None:
    make(output(tmp_path / "out", source))
    before = (tmp_path / "out" / MANIFEST).stat().st_mtime_ns
    assert output(tmp_path / "out", source).already_finished() is not None
    assert (tmp_path / "out" / MANIFEST).stat().st_mtime_ns == before


def test_other_work_is_refused_and_the_difference_named(tmp_path: Path, source: Path) -> None:
    make(output(tmp_path / "out", source))
    with pytest.raises(
        RetrievoError, match="is finished, but depth was 10 and is now 20; pass --force or another --output"
    ):
        output(tmp_path / "out", source, depth=20).already_finished()
    source.write_text("two")
    with pytest.raises(RetrievoError, match="its input 'source' has changed"):
        output(tmp_path / "out", source).already_finished()


def test_an_option_that_is_off_was_so_before_there_was_such_an_option(tmp_path: Path, source: Path) -> None:
    made = {"source": Input.of(source)}
    make(Output(tmp_path / "out", "dataset", {"depth": 10}, made))
    later = {"depth": 10, "bidirectional": False, "ranker": None, "extra_dataset": []}
    assert Output(tmp_path / "out", "dataset", later, made).already_finished() is not None
    with pytest.raises(RetrievoError, match="bidirectional was null and is now true"):
        Output(tmp_path / "out", "dataset", later | {"bidirectional": True}, made).already_finished()
    with pytest.raises(RetrievoError, match="first was null and is now 0"):
        Output(tmp_path / "out", "dataset", later | {"first": 0}, made).already_finished()


def as_of_the_first_version(path: Path) -> None:
    """Takes from a manifest or begin.json what the first version did not write."""
    told = json.loads(path.read_text())
    assert told.pop("options") == 2
    path.write_text(json.dumps(told))


def test_an_output_whose_options_had_other_names_is_read_and_not_taken_for_the_same(
    tmp_path: Path, source: Path
) -> None:
    make(output(tmp_path / "out", source))
    as_of_the_first_version(tmp_path / "out" / MANIFEST)
    assert Manifest.read(tmp_path / "out", "dataset").config == {"depth": 10}
    words = "is finished, but another version of retrievo made it, whose options had other names; pass --force"
    with pytest.raises(RetrievoError, match=words):
        output(tmp_path / "out", source).already_finished()


def test_work_begun_with_options_of_other_names_is_not_resumed(tmp_path: Path, source: Path) -> None:
    begun = output(tmp_path / "out", source, in_place=True)
    assert begun.already_finished() is None
    with contextlib.suppress(KeyboardInterrupt), begun.build() as folder:
        (folder / "data.txt").write_text("half")
        raise KeyboardInterrupt
    as_of_the_first_version(tmp_path / "out" / BEGIN)
    with pytest.raises(RetrievoError, match="is unfinished, but another version of retrievo made it"):
        output(tmp_path / "out", source, in_place=True).already_finished()


def test_force_replaces_what_the_manifest_lists_and_keeps_the_rest(tmp_path: Path, source: Path) -> None:
    make(output(tmp_path / "out", source))
    (tmp_path / "out" / "mine.txt").write_text("mine")
    make(output(tmp_path / "out", source, depth=20, force=True), "new", name="new.txt")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [MANIFEST, "mine.txt", "new.txt"]
    assert not (tmp_path / "out.old").exists()


@pytest.mark.parametrize("force", [False, True])
def test_an_output_that_is_an_input_or_holds_one_is_refused(tmp_path: Path, source: Path, force: bool) -> None:
    make(output(tmp_path / "out", source))
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for given in (Input.of(tmp_path / "out"), Input.of(tmp_path / "link"), Input(tmp_path / "out", "x")):
        made = Output(tmp_path / "out", "dataset", {}, {"corpus": given}, force=force)
        with pytest.raises(RetrievoError, match=r"out: is also an input \(corpus\); choose another --output"):
            made.already_finished()
    held = tmp_path / "out" / "data.txt"
    for given in (Input.of(held), Input.of(tmp_path / "*" / "*.txt", [held])):
        made = Output(tmp_path / "out", "dataset", {}, {"corpus": given}, force=force)
        with pytest.raises(RetrievoError, match=r"out: holds an input \(corpus\)"):
            made.already_finished()
    file = Output(held, "run", {}, {"queries": Input.of(tmp_path / "out", [held])}, force=force, single_file=True)
    with pytest.raises(RetrievoError, match=r"data.txt: is also an input \(queries\)"):
        file.already_finished()
    assert held.read_text() == "data"


def test_an_output_may_lie_in_the_folder_of_its_input_and_read_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "stage").mkdir()
    pool = tmp_path / "stage" / "negatives.parquet"
    pool.write_text("x")
    inputs = {"negatives": Input.of(pool), "corpus": Input.of(tmp_path, [pool])}
    make(Output(tmp_path / "stage", "model", {}, inputs, in_place=True, beside=(pool.name,)))
    assert (
        Output(
            tmp_path / "stage", "model", {}, inputs, in_place=True, beside=(pool.name,), force=True
        ).already_finished()
        is None
    )


def test_what_is_of_another_kind_is_not_offered_for_replacement(tmp_path: Path, source: Path) -> None:
    make(output(tmp_path / "out", source))
    with pytest.raises(RetrievoError, match="it is of kind 'dataset', not 'run'; choose another --output"):
        Output(tmp_path / "out", "run", {}, {}).already_finished()


def test_the_old_output_stays_readable_while_the_new_one_is_built(tmp_path: Path, source: Path) -> None:
    make(output(tmp_path / "out", source))
    rebuilt = output(tmp_path / "out", source, force=True)
    with rebuilt.build() as folder:
        (folder / "data.txt").write_text("new")
        assert (tmp_path / "out" / "data.txt").read_text() == "data"
        rebuilt.finish({})
    assert (tmp_path / "out" / "data.txt").read_text() == "new"


def test_a_swap_cut_short_is_ended_at_the_next_run(tmp_path: Path, source: Path) -> None:
    make(output(tmp_path / "out", source))
    (tmp_path / "out").rename(tmp_path / "out.old")
    assert output(tmp_path / "out", source).already_finished() is not None
    assert (tmp_path / "out" / "data.txt").exists()


def test_an_unfinished_work_folder_is_begun_anew(tmp_path: Path, source: Path) -> None:
    cut_short = output(tmp_path / "out", source)
    with cut_short.build() as folder:
        (folder / "half.txt").write_text("ha")
    make(output(tmp_path / "out", source))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["data.txt", MANIFEST]


def test_a_folder_that_is_not_ours_is_refused(tmp_path: Path, source: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(RetrievoError, match=r"holds files that retrievo did not make \('thesis.txt'\)"):
        output(tmp_path / "out", source).already_finished()


@pytest.mark.parametrize("in_place", [True, False])
def test_a_writer_killed_while_it_wrote_down_what_it_begins_left_no_stranger(
    tmp_path: Path, source: Path, in_place: bool
) -> None:
    made = output(tmp_path / "out", source, in_place=in_place)
    made.folder.mkdir()
    (made.folder / ".begin.json.1234.tmp").write_text("{")
    assert made.already_finished() is None
    with made.build():
        made.finish({})
    assert [path.name for path in (tmp_path / "out").iterdir()] == [MANIFEST]


def test_files_that_may_stand_beside_are_no_strangers(tmp_path: Path, source: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "negatives.parquet").write_text("x")
    made = Output(tmp_path / "out", "model", {}, {}, in_place=True, beside=("negatives.parquet",))
    manifest = make(made)
    assert list(manifest.files) == ["data.txt"]


def test_work_in_place_goes_on_only_under_the_same_options(tmp_path: Path, source: Path) -> None:
    with output(tmp_path / "out", source, in_place=True).build() as folder:
        (folder / "half.txt").write_text("ha")
    assert (tmp_path / "out" / BEGIN).exists()
    with pytest.raises(RetrievoError, match="is unfinished, but depth was 10 and is now 20"):
        output(tmp_path / "out", source, depth=20, in_place=True).already_finished()
    again = output(tmp_path / "out", source, in_place=True)
    assert again.already_finished() is None
    with again.build() as folder:
        assert (folder / "half.txt").exists()
        again.finish({})
    assert not (tmp_path / "out" / BEGIN).exists()


def test_work_goes_on_under_other_options_that_may_be_adjusted(tmp_path: Path, source: Path) -> None:
    begun = output(tmp_path / "out", source, depth=10, in_place=True, adjustable=("depth",))
    with contextlib.suppress(RuntimeError), begun.build() as folder:
        (folder / "half").write_text("done")
        raise RuntimeError("memory ran out")
    other = output(tmp_path / "out", source, depth=20, in_place=True, adjustable=("depth",))
    assert other.already_finished() is None
    with other.build() as folder:
        assert (folder / "half").read_text() == "done"
        other.finish({})
    assert Manifest.read(tmp_path / "out").config == {"depth": 20}


def test_a_second_writer_is_refused(tmp_path: Path, source: Path) -> None:
    with (
        output(tmp_path / "out", source).build(),
        pytest.raises(RetrievoError, match="another retrievo is writing it"),
        output(tmp_path / "out", source).build(),
    ):
        pass


def test_reading_refuses_other_kinds_unfinished_and_foreign_folders(tmp_path: Path, source: Path) -> None:
    make(output(tmp_path / "out", source))
    with pytest.raises(RetrievoError, match="is of kind 'dataset'; expected embeddings or faiss-index"):
        Manifest.read(tmp_path / "out", "embeddings", "faiss-index")
    with pytest.raises(RetrievoError, match="no such file or folder"):
        Manifest.read(tmp_path / "nowhere")
    (tmp_path / "foreign").mkdir()
    with pytest.raises(RetrievoError, match=r"is not an artifact of retrievo \(it has no manifest.json\)"):
        Manifest.read(tmp_path / "foreign")
    (tmp_path / "foreign" / BEGIN).write_text("{}")
    with pytest.raises(RetrievoError, match="is unfinished; run the command that makes it again"):
        Manifest.read(tmp_path / "foreign")


def test_a_newer_format_is_refused(tmp_path: Path, source: Path) -> None:
    make(output(tmp_path / "out", source))
    path = tmp_path / "out" / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(RetrievoError, match="has format 99 of 'dataset'"):
        Manifest.read(tmp_path / "out")


def test_a_kind_that_is_not_listed_has_format_1_whether_or_not_its_name_is_asked_for(
    tmp_path: Path, source: Path
) -> None:
    make(Output(tmp_path / "out", "new-index", {}, {"source": Input.of(source)}))
    assert Manifest.read(tmp_path / "out") == Manifest.read(tmp_path / "out", "new-index")
    path = tmp_path / "out" / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    for kinds in ((), ("new-index",)):
        with pytest.raises(RetrievoError, match="has format 2 of 'new-index'; this is retrievo"):
            Manifest.read(tmp_path / "out", *kinds)


def test_an_input_is_found_where_it_was_or_beside_the_artifact(tmp_path: Path, source: Path) -> None:
    make(output(tmp_path / "out", source))
    manifest = Manifest.read(tmp_path / "out")
    assert manifest.input_path("source", "--source") == source
    source.unlink()
    with pytest.raises(RetrievoError, match="is no longer there; pass --source"):
        manifest.input_path("source", "--source")


@pytest.mark.parametrize("folder", [".", "made"])
def test_an_input_that_was_a_glob_is_found_wherever_the_output_lies(tmp_path: Path, source: Path, folder: str) -> None:
    given = tmp_path / "so*.txt"
    make(Output(tmp_path / folder / "out", "dataset", {}, {"source": Input.of(given, [source])}))
    manifest = Manifest.read(tmp_path / folder / "out")
    assert manifest.input_path("source", "--source") == given
    source.rename(tmp_path / "other.txt")
    (tmp_path / "made").mkdir(exist_ok=True)
    (tmp_path / "made" / "some.txt").write_text("of this name by chance")
    with pytest.raises(RetrievoError, match="is no longer there; pass --source"):
        manifest.input_path("source", "--source")


def test_a_file_of_an_artifact_that_was_changed_is_another_input_than_its_manifest_recorded(
    tmp_path: Path, source: Path
) -> None:
    make(output(tmp_path / "out", source))
    file = tmp_path / "out" / "data.txt"
    recorded = Manifest.read(tmp_path / "out").files["data.txt"]["blake2b"]
    assert Input.of(file).fingerprint == recorded
    file.write_text("data and more")
    changed = Input.of(file).fingerprint
    assert changed != recorded
    (tmp_path / "alone.txt").write_text("data and more")
    assert changed == Input.of(tmp_path / "alone.txt").fingerprint


def test_a_renamed_file_has_the_same_fingerprint_and_a_changed_one_another(tmp_path: Path, source: Path) -> None:
    before = Input.of(source).fingerprint
    renamed = source.rename(tmp_path / "renamed.txt")
    assert Input.of(renamed).fingerprint == before
    renamed.write_text("two")
    assert Input.of(renamed).fingerprint != before


OURS = {"kind": "dataset", "format": 1, "created_by": "retrievo 0", "command": "", "config": {}, "inputs": {}}
FOREIGN = [b'{"name": "a web page"}', b"[1]", b"null", json.dumps({**OURS, "created_by": "x"}).encode()]
DAMAGED = [{"format": "1"}, {"inputs": []}, {"inputs": {"a": 1}}, {"inputs": {"a": {"path": ""}}}, {"files": {"a": 1}}]
UNREADABLE = [b"\xff\xfe", b"{"]


@pytest.mark.parametrize("content", [*FOREIGN, *UNREADABLE, *(json.dumps(OURS | wrong).encode() for wrong in DAMAGED)])
def test_a_manifest_that_is_none_of_ours_is_told_and_never_in_the_way(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "source.txt").write_text("one")
    alone = Input.of(tmp_path / "source.txt")
    (tmp_path / MANIFEST).write_bytes(content)
    assert Input.of(tmp_path / "source.txt") == alone
    with pytest.raises(RetrievoError) as caught:
        Manifest.read(tmp_path)
    assert "install the version" not in str(caught.value)
    assert "make the artifact again" in str(caught.value) or "not written by retrievo" in str(caught.value)
    with pytest.raises(RetrievoError):
        output(tmp_path, tmp_path / "source.txt", force=True).already_finished()


@pytest.mark.parametrize("content", FOREIGN)
def test_a_folder_with_a_foreign_manifest_is_a_folder_without_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    assert not has_manifest(tmp_path)


def test_a_manifest_of_a_later_version_asks_for_that_version(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps(OURS | {"more": 1}))
    assert has_manifest(tmp_path)
    with pytest.raises(RetrievoError, match="install the version that wrote it"):
        Manifest.read(tmp_path)

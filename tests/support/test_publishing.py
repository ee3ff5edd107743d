"""From begun to complete to published: the next run ends every state on disk, and finished work is never lost."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retrievo.support import artifact, publishing
from retrievo.support.artifact import BEGIN, MANIFEST, Input, Manifest, Output
from retrievo.support.errors import RetrievoError
from retrievo.support.files import write_json
from retrievo.support.locks import hold


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "source.txt").write_text("one")
    return tmp_path / "out"


def output(place: Path, *, depth: int = 10, **more: Any) -> Output:
    return Output(place, "dataset", {"depth": depth}, {"source": Input.of(place.with_name("source.txt"))}, **more)


def make(made: Output, text: str, name: str = "data.txt") -> None:
    assert made.already_finished() is None
    with made.build() as folder:
        (folder / name).write_text(text)
        made.finish({})


def begun(made: Output, name: str = "half.txt") -> Path:
    """Work that was killed: in its folder, without any of what follows an error."""
    assert made.already_finished() is None
    made.folder.mkdir(exist_ok=True)
    write_json(made.folder / BEGIN, made._begin())
    (made.folder / name).write_text("half")
    return made.folder


def complete(made: Output, text: str = "new") -> Path:
    """Work that was killed when it was finished and not yet published."""
    assert made.already_finished() is None
    made.folder.mkdir(exist_ok=True)
    (made.folder / "data.txt").write_text(text)
    files = {"data.txt": {"bytes": len(text), "blake2b": "0"}}
    write_json(made.folder / MANIFEST, {**made.manifest({}).as_json(), "files": files})
    return made.folder


def refuse(monkeypatch: pytest.MonkeyPatch, target: Path) -> None:
    """The system refuses to rename anything to a path."""
    rename = Path.rename

    def refused(self: Path, to: Path) -> Path:
        if Path(to) == target and self.name.endswith(".partial"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(self), None, str(to))
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", refused)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------------------------- complete work is never lost


@pytest.mark.parametrize("force", [False, True])
def test_finished_work_outlives_a_rename_that_fails(force: bool, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if force:
        make(output(place), "old")
        (place / "mine.txt").write_text("mine")
    with monkeypatch.context() as patch:
        refuse(patch, place)
        with pytest.raises(
            RetrievoError, match=r"cannot be moved to its path \(Device or resource busy\); the finished"
        ):
            make(output(place, depth=20, force=force), "new")
    assert (place.with_name("out.partial") / "data.txt").read_text() == "new"
    if force:
        assert (place / "data.txt").read_text() == "old", "a reader finds the old one meanwhile"
    assert output(place, depth=20, force=force).already_finished() is not None, "published without doing it again"
    assert (place / "data.txt").read_text() == "new"
    assert names(place.parent) == ["out", "source.txt"]
    assert names(place) == sorted(["data.txt", MANIFEST, *(["mine.txt"] if force else [])])


@pytest.mark.parametrize("state", ["complete", "complete, its mark of a beginning there", "old one renamed", "renamed"])
@pytest.mark.parametrize("replaces", [False, True])
def test_every_state_between_complete_and_published_is_ended(state: str, replaces: bool, place: Path) -> None:
    if replaces:
        make(output(place), "old", name="old.txt")
        (place / "mine").mkdir()
        (place / "mine" / "note.txt").write_text("mine")
    partial = complete(output(place, depth=20, force=replaces))
    if state.endswith("beginning there"):
        write_json(partial / BEGIN, {})
    if "renamed" in state and replaces:
        place.rename(place.with_name("out.old"))
    if state == "renamed":
        partial.rename(place)
    assert output(place, depth=20, force=replaces).already_finished() is not None
    assert (place / "data.txt").read_text() == "new"
    assert Manifest.read(place).config == {"depth": 20}
    assert names(place) == sorted(["data.txt", MANIFEST, *(["mine"] if replaces else [])])
    assert not replaces or (place / "mine" / "note.txt").read_text() == "mine"
    assert names(place.parent) == ["out", "source.txt"]


@pytest.mark.parametrize("removals", range(7))
def test_an_old_output_that_was_half_removed_leaves_none_of_its_files_in_the_new_one(
    removals: int, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, left = output(place), iter(range(removals))
    assert first.already_finished() is None
    with first.build() as folder:
        for name in ("a.txt", "b.txt", "c.txt"):
            (folder / name).write_text(name)
        first.finish({})
    (place / "mine.txt").write_text("mine")

    def dies(path: Path, remove: Callable[[Path], None] = publishing.remove) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        remove(path)

    monkeypatch.setattr(publishing, "remove", dies)
    with pytest.raises(KeyboardInterrupt):
        make(output(place, depth=20, force=True), "new")
    monkeypatch.undo()
    assert output(place, depth=20, force=True).already_finished() is not None
    assert names(place) == ["data.txt", MANIFEST, "mine.txt"]
    assert names(place.parent) == ["out", "source.txt"]


def test_complete_work_of_other_options_is_published_where_nothing_stands(place: Path) -> None:
    complete(output(place, depth=20))
    with pytest.raises(RetrievoError, match="is finished, but depth was 20 and is now 10; pass --force or another"):
        output(place).already_finished()
    assert (place / "data.txt").read_text() == "new"


def test_complete_work_of_other_options_does_not_replace_what_stands_there(place: Path) -> None:
    make(output(place), "old")
    complete(output(place, depth=20, force=True))
    assert output(place).already_finished() is not None
    assert (place / "data.txt").read_text() == "old"
    assert output(place, depth=20, force=True).already_finished() is not None
    assert (place / "data.txt").read_text() == "new"


def test_files_that_stand_where_an_output_was_are_not_taken_for_the_new_one(place: Path) -> None:
    make(output(place), "old")
    place.rename(place.with_name("out.old"))
    place.mkdir()
    (place / "thesis.txt").write_text("mine")
    with pytest.raises(RetrievoError, match=r"holds files that retrievo did not make, and .*out.old is the output"):
        output(place).already_finished()
    assert (place.with_name("out.old") / "data.txt").read_text() == "old"
    assert (place / "thesis.txt").read_text() == "mine"


def test_an_empty_work_folder_of_a_finished_output_goes(place: Path) -> None:
    make(output(place), "data")
    place.with_name("out.partial").mkdir()  # killed as it was removed
    assert output(place).already_finished() is not None
    assert names(place.parent) == ["out", "source.txt"]


def test_what_was_cut_short_is_ended_under_the_lock(place: Path) -> None:
    complete(output(place))
    with hold(place), pytest.raises(RetrievoError, match="another retrievo is writing it"):
        output(place).already_finished()
    assert not place.exists()
    assert output(place).already_finished() is not None


def test_an_output_finished_by_another_process_meanwhile_is_not_written_over(place: Path) -> None:
    late = output(place, in_place=True)
    assert late.already_finished() is None
    make(output(place, in_place=True), "first")
    told = "another retrievo has written it meanwhile; run the same command again"
    with pytest.raises(RetrievoError, match=told), late.build():
        pass
    assert Manifest.read(place).kind == "dataset"


def test_a_file_of_the_user_with_the_name_of_a_new_one_is_kept(place: Path) -> None:
    make(output(place), "old")
    (place / "new.txt").write_text("mine")
    make(output(place, depth=20, force=True), "new", name="new.txt")
    assert (place / "new.txt").read_text() == "new"
    assert (place / "new.txt.old").read_text() == "mine"


def test_a_mount_point_is_refused_before_the_work(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == place)
    with pytest.raises(RetrievoError, match="is a mount point, which no finished folder can replace; choose a folder"):
        output(place).already_finished()
    made = output(place, in_place=True)  # what grows where it stands is never renamed
    make(made, "data")
    with pytest.raises(RetrievoError, match="is a mount point"):
        output(place, in_place=True, depth=20, force=True).already_finished()


def test_an_output_killed_between_its_manifest_and_the_end_of_its_beginning_is_finished(place: Path) -> None:
    make(output(place, in_place=True), "data")
    write_json(place / BEGIN, {"kind": "dataset", "config": {"depth": 99}, "inputs": {}})
    assert output(place, in_place=True).already_finished() is not None
    assert names(place) == ["data.txt", MANIFEST]


# ------------------------------------------------------------------------------------------------------ single files


def single(place: Path, depth: int = 10, force: bool = False) -> Output:
    beside = {"dropped.txt": place.with_name("dropped.txt")}
    return output(place.with_name("run.txt"), depth=depth, single_file=True, companions=beside, force=force)


def test_a_single_file_and_its_companions_outlive_a_rename_that_fails(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path, to: Path) -> Path:
        if Path(to) == place.with_name("run.txt"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        os.replace(self, to)
        return to

    def work(made: Output) -> None:
        assert made.already_finished() is None
        with made.build() as folder:
            for name in ("run.txt", "dropped.txt"):
                (folder / name).write_text("new")
            made.finish({})

    place.with_name("run.txt").write_text("old")
    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(RetrievoError, match="cannot be moved to its path"):
        work(single(place, force=True))
    monkeypatch.undo()
    assert place.with_name("run.txt").read_text() == "old"
    assert single(place, force=True).already_finished() is not None
    assert (place.with_name("run.txt").read_text(), place.with_name("dropped.txt").read_text()) == ("new", "new")
    assert names(place.parent) == ["dropped.txt", "run.txt", "run.txt.manifest.json", "source.txt"]
    (place.with_name("run.txt.partial")).mkdir()  # killed when all was in its place
    write_json(place.with_name("run.txt.partial") / MANIFEST, single(place).manifest({}).as_json())
    assert single(place, force=True).already_finished() is not None
    assert names(place.parent) == ["dropped.txt", "run.txt", "run.txt.manifest.json", "source.txt"]


# ------------------------------------------------------------------------------- unfinished work: gone on with, or not


def test_force_replaces_the_published_output_only_and_goes_on_with_its_own_unfinished_work(place: Path) -> None:
    make(output(place, in_place=True), "old")
    begun(output(place, in_place=True, depth=20, force=True))
    made = output(place, in_place=True, depth=20, force=True)
    assert made.already_finished() is None
    with made.build() as folder:
        assert (folder / "half.txt").exists()
        assert (place / "data.txt").read_text() == "old"
        made.finish({})
    assert names(place) == ["half.txt", MANIFEST]


def test_force_goes_on_with_unfinished_work_where_nothing_is_published(place: Path) -> None:
    begun(output(place, in_place=True))
    made = output(place, in_place=True, force=True)
    assert made.already_finished() is None
    with made.build() as folder:
        assert folder == place
        assert (folder / "half.txt").exists()


def test_unfinished_work_aside_is_gone_on_with_when_the_old_output_is_gone(place: Path) -> None:
    make(output(place, in_place=True), "old")
    begun(output(place, in_place=True, depth=20, force=True))
    for path in place.iterdir():
        path.unlink()
    made = output(place, in_place=True, depth=20)
    assert made.already_finished() is None
    with made.build() as folder:
        assert (folder / "half.txt").exists()
        made.finish({})
    assert names(place) == ["half.txt", MANIFEST]


@pytest.mark.parametrize("more", [{"depth": 30}, {"depth": 20, "restart": True}], ids=["other options", "restart"])
def test_other_unfinished_work_aside_is_emptied(more: dict[str, Any], place: Path) -> None:
    make(output(place, in_place=True), "old")
    begun(output(place, in_place=True, depth=20, force=True))
    made = output(place, in_place=True, force=True, **more)
    assert made.already_finished() is None
    with made.build() as folder:
        assert names(folder) == [BEGIN]
        assert json.loads((folder / BEGIN).read_text())["config"] == {"depth": more["depth"]}


@pytest.mark.parametrize("more", [{"force": True, "depth": 20}, {"restart": True}, {"restart": True, "depth": 20}])
def test_begun_anew_an_unfinished_folder_keeps_nothing_but_the_files_of_others(
    more: dict[str, Any], place: Path
) -> None:
    options: dict[str, Any] = {"in_place": True, "beside": ("pool.txt",), "volatile": ("logs",)}
    options |= {"unfinished": ("shard-*",)}
    begun(output(place, **options), name="shard-1")
    (place / "logs").mkdir()
    (place / "logs" / "step").write_text("1")
    for name in ("pool.txt", "mine.txt"):
        (place / name).write_text("mine")
    made = output(place, **options, **more)
    assert made.already_finished() is None
    with made.build() as folder:
        assert names(folder) == [BEGIN, "mine.txt", "pool.txt"]


def test_killed_while_it_was_emptied_a_folder_is_never_gone_on_with(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(output(place, in_place=True, unfinished=("half*",)), name="half-1")
    (place / "half-2").write_text("half")

    def dies(path: Path) -> None:
        if path.name == "half-2":
            raise KeyboardInterrupt
        path.unlink(missing_ok=True)

    anew = output(place, in_place=True, unfinished=("half*",), restart=True)
    assert anew.already_finished() is None
    monkeypatch.setattr(artifact, "remove", dies)
    with pytest.raises(KeyboardInterrupt), anew.build():
        pass
    monkeypatch.undo()
    made = output(place, in_place=True, unfinished=("half*",))
    assert made.already_finished() is None
    with made.build() as folder:
        assert names(folder) == [BEGIN]


@pytest.mark.parametrize("resumes", [False, True])
def test_interrupted_work_aside_stays_where_it_can_be_gone_on_with(
    resumes: bool, place: Path, said: Callable[[], str]
) -> None:
    made = output(place, resumes=resumes)
    assert made.already_finished() is None

    def interrupted() -> None:
        with made.build() as folder:
            (folder / "half.txt").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (place.with_name("out.partial") / "half.txt").exists() == resumes
    assert ("the same command resumes it" in said()) == resumes


def test_a_full_disk_is_told_with_the_folder_and_what_is_free(place: Path) -> None:
    problems = [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError("4096 requested and 512 written"),
    ]
    for problem in problems:
        made = output(place)
        assert made.already_finished() is None
        told = r"out.partial: the disk is full \([\d,]+ MiB free\); free some space"
        with pytest.raises(RetrievoError, match=told), made.build():
            raise problem
    with pytest.raises(OSError, match="Permission denied"), output(place).build():
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

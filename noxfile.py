"""What CI runs, by name: `nox` for tests, lint, types and docs; `nox -s slow` for the rest. `nox --list` shows them."""

import nox

nox.options.sessions = ["lint", "types", "docs", "tests"]
nox.options.reuse_existing_virtualenvs = True


@nox.session
def tests(session: nox.Session) -> None:
    """The quick tests: under 6 minutes on 2 cores. Arguments after `--` go to pytest."""
    session.install(".[cpu,test]")
    session.run("pytest", "-n", "2", "--dist", "loadfile", *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """Kill tests, several processes, larger data: 20 minutes."""
    session.install(".[cpu,test]")
    session.run("pytest", "-n", "2", "--dist", "loadfile", "-m", "slow", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style of the code."""
    session.install("ruff>=0.12", "codespell>=2.4")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("codespell")


@nox.session
def types(session: nox.Session) -> None:
    """Static types of the package."""
    session.install(".[cpu,lint]")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """The generated pages are up to date, and every command of the pages exists."""
    session.install(".[cpu,test]")
    session.run("python", "docs/generate.py", "--check")
    session.run("pytest", "tests/test_docs.py")


@nox.session
def package(session: nox.Session) -> None:
    """The sdist and the wheel, checked."""
    session.install("build", "twine")
    session.run("python", "-m", "build")
    session.run("twine", "check", "--strict", "dist/*")

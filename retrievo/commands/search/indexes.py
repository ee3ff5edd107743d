"""What a search draws on: indexes opened with the options that mean something to them, and the corpora behind them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from retrievo.data.options import parse_memory
from retrievo.retrieval.searcher import KINDS, can, does_not_apply, index_folder, open_folder, takes
from retrievo.support import console
from retrievo.support.conditions import is_off
from retrievo.support.errors import RetrievoError, UsageError
from retrievo.support.options import options_of
from retrievo.support.values import Values

if TYPE_CHECKING:
    from retrievo.commands.search.across import Shelves
    from retrievo.commands.search.config import SearchConfig
    from retrievo.data.corpus import Corpus
    from retrievo.data.origin import Origin
    from retrievo.retrieval.dense import Encoders
    from retrievo.retrieval.embeddings import Vectors
    from retrievo.retrieval.index_folder import IndexFolder
    from retrievo.retrieval.searcher import Searcher


class Sources(NamedTuple):
    """The indexes of a search, which are not opened yet; shelves: their corpora, where these are ranked together."""

    indexes: Sequence[IndexFolder]
    shelves: Shelves | None


def find_sources(config: SearchConfig) -> Sources:
    """What is searched, where the kinds of the indexes, their corpora and the options go together.

    Raises: RetrievoError or UsageError where they do not.
    """
    from retrievo.commands.search.across import Shelves

    indexes = [index_folder(path) for path in config.index]
    check_meaning(config, indexes)
    if config.across_corpora:
        shelves = Shelves.of(config.places)
    else:
        shelves = None
        check_corpora(config)
    if config.corpus is None:  # who names a corpus knows which
        warn_of_changed_texts(indexes)
    return Sources(indexes, shelves)


def open_indexes(config: SearchConfig, indexes: Sequence[IndexFolder]) -> list[Searcher]:
    """All indexes, open for search; those of one model share it."""
    from retrievo.retrieval.dense import Encoders

    encoders, settings = Encoders(config.compute), _settings(config)
    return [_open(index, encoders, settings) for index in indexes]


def _open(index: IndexFolder, encoders: Encoders, settings: Mapping[str, object]) -> Searcher:
    return open_folder(index, encoders, **{name: settings[name] for name in settings if takes(index.manifest, name)})


def _settings(config: SearchConfig) -> Values:
    """The options that an index may take, as it takes them; None where the index has a default of its own."""
    from retrievo.retrieval.bm25 import Rm3

    names = {name for kind in KINDS.values() for name in kind.settings} - {"rm3", "memory"}
    rm3 = Rm3(config.rm3_documents, config.rm3_words, config.rm3_weight) if config.rm3 else None
    memory = parse_memory(config.memory) if config.memory else None
    return {name: getattr(config, name) for name in sorted(names)} | {"rm3": rm3, "memory": memory}


def check_meaning(config: SearchConfig, indexes: Sequence[IndexFolder]) -> None:
    """Refuses options of indexes that have no meaning for any of these.

    Raises: UsageError that names one.
    """
    for known in options_of(type(config)):
        is_given = known.declaration.of_index and not is_off(getattr(config, known.name))
        if is_given and not any(takes(index.manifest, known.name) or can(index, known.name) for index in indexes):
            if not indexes:
                raise UsageError(known.flag, "does not apply to runs", "an --index")
            raise UsageError(known.flag, does_not_apply(indexes[-1]))


def accompanied(config: SearchConfig, indexes: Sequence[IndexFolder]) -> AbstractContextManager[bool]:
    """Whether this process leads, of those that torchrun started; the others scan their rows for it until it ends."""
    from retrievo.retrieval.distributed import company

    def device() -> str:
        from retrievo.models.devices import resolve_device

        return resolve_device(config.device)

    @functools.cache
    def vectors_of(path: Path) -> Vectors:
        from retrievo.retrieval.dense import DenseSearcher, Encoders

        searcher = _open(next(index for index in indexes if index.path == path), Encoders(), _settings(config))
        assert isinstance(searcher, DenseSearcher)
        return searcher.vectors

    return company(device, vectors_of, threads=config.threads)


# ------------------------------------------------------------------------------------------------------------- corpora


def check_corpora(config: SearchConfig) -> None:
    """Refuses to put documents of different corpora into one ranking: their ids and their scores mean other things.

    Raises: RetrievoError that names both corpora.
    """
    from retrievo.data.origin import CORPUS, named, origins, same

    known = [(place, found) for place in config.places if (found := origins(place, CORPUS))]
    for place, found in known[1:]:
        if not same(found, known[0][1]):
            problem = f"was made from another corpus ({named(found)}) than {known[0][0]} ({named(known[0][1])})"
            raise RetrievoError(place, problem, "one corpus", "search them apart, or pass --across-corpora")
    if config.sources > 1:
        for place in [place for place in config.places if place not in dict(known)]:
            console.note(f"{place} does not say of which corpus it is; that it is that of the others can't be checked")
    if config.corpus is not None and known:
        _check_given_corpus(config.corpus, *known[0], scored=config.rerank is not None)


def _check_given_corpus(corpus: Path, place: Path, found: Sequence[Origin], *, scored: bool) -> None:
    """Refuses a --corpus that is not the one searched where a cross-encoder reads it, and warns of it elsewhere.

    place, found: the first index or run that knows its corpora, and these. scored: whether a cross-encoder reads them.

    Raises: RetrievoError that names both corpora.
    """
    from retrievo.data.finding import table_files
    from retrievo.data.origin import CORPUS, Origin, named, part_of
    from retrievo.support.artifact import Input

    given = Origin.of(CORPUS, Input.of(corpus, table_files(corpus, CORPUS)))
    if part_of([given], found) or corpus.resolve() in {one.path.resolve() for one in found}:
        return  # where it was and has changed since: who names it knows that
    problem = f"is another corpus than {place} was made from ({named(found)})"
    if scored:
        raise RetrievoError(corpus, problem, None, "pass that one to --corpus, or leave it out")
    console.warn(f"{corpus}: {problem}; the texts may be those of other documents")


def warn_of_changed_texts(indexes: Sequence[IndexFolder]) -> None:
    """Says which indexes were made of another content of their corpus: what they find is not what stands there now."""
    from retrievo.data.finding import table_files
    from retrievo.support.artifact import Input

    for index in indexes:
        with contextlib.suppress(RetrievoError):  # what is gone can't be compared; who needs it says so
            now = [Input.of(path, table_files(path, "corpus")).fingerprint for path in index.corpora()]
            if now != [manifest.inputs["corpus"]["fingerprint"] for manifest in index.made_of_texts()]:
                console.warn(f"{index.path}: its corpus has changed since it was made; make it again with --force")


def open_corpora(given: Path | None, indexes: Sequence[IndexFolder]) -> list[Corpus]:
    """The corpus that was given, else those that the first index which knows its own was made from."""
    from retrievo.data.corpus import Corpus

    if given is not None:
        return [Corpus(given)]
    for index in indexes:
        if paths := index.corpora():
            return [Corpus(path) for path in paths]
    return []

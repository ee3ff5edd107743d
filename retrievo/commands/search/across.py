"""Documents of several corpora in one ranking (`--across-corpora`), where one id may mean two documents.

While they are ranked, a mark of two characters before each id says which corpus it is of; what comes out has plain ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from retrievo.data.corpus import Corpus, Document, first_found
from retrievo.data.origin import CORPUS, Origin, named, origins, same
from retrievo.retrieval.hits import Hits
from retrievo.support.errors import RetrievoError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

_END, _WIDTH = "\x1f", 2  # a mark is one character that counts the corpora and this one


class Shelves(NamedTuple):
    """The corpora behind some indexes and runs, distinguished by marks.

    mark: of each index and run; tables: of each mark, the corpora that its documents are of.
    """

    mark: Mapping[Path, str]
    tables: Mapping[str, Sequence[Origin]]

    @classmethod
    def of(cls, places: Sequence[Path]) -> Shelves:
        """Raises RetrievoError for what does not say of which corpus it is, and for corpora that overlap."""
        mark: dict[Path, str] = {}
        tables: dict[str, Sequence[Origin]] = {}
        for place in places:
            found = origins(place, CORPUS)
            if not found:
                raise RetrievoError(place, "does not say of which corpus it is", "one that does, with --across-corpora")
            alike = [own for own, known in tables.items() if same(known, found)]
            if not alike:
                _check_apart(place, found, tables.values())
                alike = [chr(ord("0") + len(tables)) + _END]
                tables[alike[0]] = found
            mark[place] = alike[0]
        return cls(mark, tables)

    def name(self, marked: str) -> str:
        """What a person calls the corpus of a document."""
        return named(self.tables[marked[:_WIDTH]])

    def open(self) -> Texts:
        """The texts of all of them.

        Raises: RetrievoError where a corpus is no longer there.
        """
        return Texts({mark: [Corpus(one.path) for one in found] for mark, found in self.tables.items()})


def _check_apart(place: Path, found: Sequence[Origin], others: Iterable[Sequence[Origin]]) -> None:
    prints = {one.fingerprint for one in found}
    for known in others:
        if prints & {one.fingerprint for one in known}:
            problem = f"is of {named(found)}, which has documents in common with {named(known)}"
            raise RetrievoError(
                place, problem, "corpora that are the same or have nothing in common", "search it apart"
            )


class Texts(NamedTuple):
    """Documents by marked id."""

    corpora: Mapping[str, Sequence[Corpus]]

    def find(self, marked: Sequence[str]) -> dict[str, Document]:
        """The documents of these marked ids, each from its own corpora; an id that those lack is left out."""
        found: dict[str, Document] = {}
        for mark, corpora in self.corpora.items():
            own = [plain_id(name) for name in marked if name[:_WIDTH] == mark]
            found |= {mark + name: document for name, document in first_found(corpora, own).items()}
        return found


def plain_id(marked: str) -> str:
    """The document's own id."""
    return marked[_WIDTH:]


def with_mark(mark: str, doc_id: pa.Array) -> pa.Array:
    """Ids of one corpus, marked."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = pa.large_string()
    return pc.binary_join_element_wise(pa.scalar(mark, kind), doc_id.cast(kind), pa.scalar("", kind))


def own_hits(mark: str, hits: Hits) -> Hits:
    """The hits that are of one corpus, with plain ids."""
    import numpy as np
    import pyarrow.compute as pc

    own = hits.at(np.flatnonzero(pc.starts_with(hits.ids(), mark).to_numpy(zero_copy_only=False)))
    return Hits.of_ids(own.query, without_mark(own.ids()), own.score)


def without_mark(doc_id: pa.Array) -> pa.Array:
    """Plain ids."""
    import pyarrow.compute as pc

    return pc.utf8_slice_codeunits(doc_id, _WIDTH)


def check_distinct(shelves: Shelves, query: np.ndarray, marked: pa.Array, plain: pa.Array) -> None:
    """Raises RetrievoError where a query has two documents with one id, which a run can't hold."""
    from retrievo.data.ordering import repeated

    if twice := repeated(query, plain):
        corpora = " and ".join(shelves.name(marked[place].as_py()) for place in twice)
        found = f"a query has two documents '{plain[twice[0]].as_py()}', of {corpora}"
        raise RetrievoError("--across-corpora", found, "other ids in each corpus", "give the documents other ids")

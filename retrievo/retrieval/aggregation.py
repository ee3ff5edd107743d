"""Passages to documents: a document is as good as its best passage, or as its first one.

The table of names is standard library only, so that the command line can list it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

    from retrievo.retrieval.hits import Hits

AGGREGATIONS = {
    "max": "a document scores as its best passage that was found (MaxP)",
    "first": "a document scores as its passage 0; it is found only where that passage was (FirstP)",
}


def documents_of(method: str, separator: str, hits: Hits) -> Hits:
    """Hits that are documents out of hits that are passages, both in order (Dai & Callan 2019).

    The id of a passage is that of its document, the separator and a number from 0; any other id is a document.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from retrievo.data.ordering import ranked
    from retrievo.retrieval.hits import Hits

    query, ids, score = hits.query, hits.ids(), hits.score
    ending = re.escape(separator) + "[0-9]+$"
    documents = pc.replace_substring_regex(ids, ending, "")
    kept = np.arange(len(ids))
    if method == "first":
        later = pc.and_(pc.match_substring_regex(ids, ending), pc.invert(_ends_with_zero(ids, separator)))
        kept = np.flatnonzero(~later.to_numpy(zero_copy_only=False))
    coded = documents.dictionary_encode()
    codes = coded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    pairs = query[kept].astype(np.int64) * max(1, len(coded.dictionary)) + codes[kept]
    kept = kept[np.unique(pairs, return_index=True)[1]]  # the first of each pair: its best
    chosen = documents.take(pa.array(kept))
    order = ranked(query[kept], score[kept], chosen)
    return Hits.of_ids(query[kept][order], chosen.take(pa.array(order)), score[kept][order])


def _ends_with_zero(ids: pa.Array, separator: str) -> pa.Array:
    import pyarrow.compute as pc

    return pc.match_substring_regex(ids, re.escape(separator) + "0+$")

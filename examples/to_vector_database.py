"""Loads an embeddings folder into a vector database, and asks the database one question.

    pip install qdrant-client
    python examples/to_vector_database.py EMBEDDINGS [--corpus DATASET] [--database FOLDER] [--ask QUERY_EMBEDDINGS]

The database is Qdrant in its local mode: a folder, or memory where none is given; `--database http://host:6333` names a
server. Points are numbered by row and carry the document's id (Qdrant wants numbers or UUIDs as keys), and its title
and text where --corpus is given. Other databases take the same batches of ids and vectors.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from retrievo import Corpus, Embeddings

COLLECTION = "documents"
POINTS_AT_ONCE = 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embeddings", type=Path)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--database", default=":memory:")
    parser.add_argument("--ask", type=Path, help="an embeddings folder of queries; the first one is asked")
    given = parser.parse_args()
    try:
        import qdrant_client
    except ImportError:
        sys.exit("qdrant-client is not installed: pip install qdrant-client")
    embeddings = Embeddings(given.embeddings)
    place = given.database
    on_disk = place != ":memory:" and "://" not in place
    client = qdrant_client.QdrantClient(path=place) if on_disk else qdrant_client.QdrantClient(place)
    load(client, embeddings, Corpus(given.corpus) if given.corpus else None)
    print(f"{client.count(COLLECTION).count:,} of {embeddings.rows:,} documents are in {place}")
    if given.ask:
        query = Embeddings(given.ask).take(np.array([0]))[0].astype(np.float32)
        for point in client.query_points(COLLECTION, query=query.tolist(), limit=10).points:
            print(f"{point.score:.4f}\t{point.payload['doc_id']}\t{point.payload.get('title', '')}")
    client.close()


def load(client: Any, embeddings: Embeddings, corpus: Corpus | None) -> None:
    """A fresh collection with every row of the embeddings."""
    from qdrant_client import models

    distance = models.Distance.COSINE if embeddings.similarity == "cosine" else models.Distance.DOT
    if client.collection_exists(COLLECTION):
        client.delete_collection(COLLECTION)
    client.create_collection(COLLECTION, models.VectorParams(size=embeddings.dim, distance=distance))
    for first, vectors in embeddings.blocks(POINTS_AT_ONCE):
        rows = np.arange(first, first + len(vectors))
        payloads = list(payloads_of(embeddings.ids(rows).to_pylist(), corpus))
        batch = models.Batch(ids=rows.tolist(), vectors=vectors.astype(np.float32).tolist(), payloads=payloads)
        client.upsert(COLLECTION, batch)


def payloads_of(ids: list[str], corpus: Corpus | None) -> Iterator[dict[str, str]]:
    found = corpus.find(ids) if corpus else {}
    for doc_id in ids:
        document = found.get(doc_id)
        yield {"doc_id": doc_id} | ({"title": document.title, "text": document.text} if document else {})


if __name__ == "__main__":
    main()

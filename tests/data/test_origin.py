"""What an artifact was made from, as the manifests on the way tell."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from retrievo.data.origin import CORPUS, fits, origins
from retrievo.support.artifact import Input, Output


def made(path: Path, kind: str, **inputs: Path) -> Path:
    output = Output(path, kind, {}, {name: Input.of(given) for name, given in inputs.items()})
    assert output.already_finished() is None
    with output.build():
        output.finish({})
    return path


def test_an_index_of_any_kind_knows_the_corpus_behind_its_embeddings(tmp_path: Path) -> None:
    indexes = []
    for name in ("one", "two"):
        corpus, folder = tmp_path / f"{name}.parquet", tmp_path / name
        pq.write_table(pa.table({"id": ["a"], "text": [name]}), corpus)
        embeddings = made(folder / "embeddings", "embeddings", corpus=corpus)
        indexes.append(made(folder / "index", "new-index", embeddings=embeddings))
        assert [origin.path for origin in origins(indexes[-1], CORPUS)] == [corpus]
    assert not fits(CORPUS, *(origins(index, CORPUS) for index in indexes))

"""`retrievo export`: the vectors and ids of an embeddings folder as files that any tool reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from retrievo.data.options import force_option, output_option
from retrievo.support import console
from retrievo.support.options import Options, option
from retrievo.support.verbs import verb

if TYPE_CHECKING:
    from retrievo.support.artifact import Manifest

VECTORS, IDS = "vectors.npy", "ids.txt"


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Options):
    """Options of `retrievo export`."""

    embeddings: Path = option("Embeddings folder to export.", positional=True, group="Data")
    output: Path = output_option(
        f"Folder to write. It gets {VECTORS} (a row per vector) and {IDS} (an id per line, in the order of the rows)."
    )
    force: bool = force_option()


@verb(ExportConfig)
def export(config: ExportConfig) -> Manifest:
    """Writes the array and the ids; `retrievo import vectors` makes the same embeddings from them.

    Raises: RetrievoError where there is no embeddings folder, or an id holds the end of a line.
    """
    from retrievo.retrieval.embeddings import Embeddings
    from retrievo.support.artifact import Input, Output

    embeddings = Embeddings(config.embeddings)
    inputs = {"embeddings": Input.of(config.embeddings)}
    output = Output(config.output, "exported-vectors", config.record(), inputs, force=config.force)
    if finished := output.already_finished():
        return finished
    with output.build() as folder, console.progress("exporting", embeddings.rows, "vectors") as tick:
        output.record(VECTORS, embeddings.write_array(folder / VECTORS, tick))
        output.record(IDS, embeddings.write_ids(folder / IDS))
        recorded = ("rows", "dim", "dtype", "role", "similarity")
        manifest = output.finish({name: embeddings.manifest.stats[name] for name in recorded})
    facts = {"output": f"{config.output} ({embeddings.rows:,} vectors of {embeddings.dim} dimensions)"}
    again = f"retrievo import vectors {config.output / VECTORS} {config.output / IDS} --output EMBEDDINGS"
    console.summary("exported", facts, f"{again} --role {embeddings.role} --similarity {embeddings.similarity}")
    return manifest

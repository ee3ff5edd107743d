"""A folder that can be searched, and what its manifest says of where it came from; nothing heavy is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from retrievo.support.artifact import Input, Manifest
from retrievo.support.errors import RetrievoError

EMBEDDINGS_KIND = "embeddings"


class IndexFolder(NamedTuple):
    """An index or an embeddings folder."""

    path: Path
    manifest: Manifest

    def embeddings(self) -> list[Path]:
        """The embeddings folders of a dense index, in the order of its rows; none for an index of texts.

        Raises: RetrievoError where one is gone, or is another one than the index was made of.
        """
        if self.manifest.kind == EMBEDDINGS_KIND:
            return [self.path]
        return [self._embeddings(name) for name in self.manifest.inputs if name.startswith(EMBEDDINGS_KIND)]

    def _embeddings(self, name: str) -> Path:
        path = self.manifest.input_path(name, "--index EMBEDDINGS")
        Manifest.read(path, EMBEDDINGS_KIND)
        if Input.of(path).fingerprint != self.manifest.inputs[name]["fingerprint"]:
            found = f"was made of other embeddings than those that lie at {path} now"
            raise RetrievoError(self.path, found, None, "build the index again")
        return path

    def embeddings_manifest(self) -> Manifest:
        """The manifest of the first of its embeddings folders: all are of one model."""
        if self.manifest.kind == EMBEDDINGS_KIND:
            return self.manifest
        return Manifest.read(self.embeddings()[0], EMBEDDINGS_KIND)

    def corpora(self) -> list[Path]:
        """Where the texts of its documents are, as far as manifests know."""
        return [manifest.input_path("corpus", "--corpus") for manifest in self.made_of_texts()]

    def made_of_texts(self) -> list[Manifest]:
        """The manifests that know a corpus."""
        made_of = [Manifest.read(path) for path in self.embeddings()] or [self.manifest]
        return [manifest for manifest in made_of if "corpus" in manifest.inputs]

"""References to models in manifests: name or folder, commit, and a fingerprint of the files.

Two models are the same if they make the same vectors, wherever their files are: a hub model and a copy of it are the
same, two commits under one name are not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from retrievo.models.checkpoints import base_folder, locate
from retrievo.models.encoder_spec import CROSS_ENCODER_FILE, ROLES, SPEC_FILE
from retrievo.models.loading import assumed
from retrievo.models.scratch import PREFIX
from retrievo.support.artifact import BEGIN, MANIFEST, Input, Manifest
from retrievo.support.errors import RetrievoError
from retrievo.support.values import Values

FIXED_DOCUMENTS = "fixed-documents"  # input of a model: the vectors that its query encoder was trained against
WEIGHTS = ("*.safetensors", "*.json", "vocab.*", "merges.txt", "*.model")
_ASIDE = {MANIFEST, BEGIN, "trainer_state.json", "generation_config.json"}  # which do not affect vectors
_SAMPLE, _SAMPLES = 64 << 10, 64  # bytes of each place that is read in a large file, and how many places
IMPORTED = "no model that is known (the vectors were imported)"


def model_record(name: str, revision: str | None, *, fetch: bool = True) -> tuple[Values, dict[str, Input]]:
    """The entries of a manifest for a model: in `config` for a `scratch:` name, in `inputs` for every other model.

    fetch: whether to fetch a hub model that is not in the local cache; without it, the entry is its name alone.
    Raises: RetrievoError where there is no such model.
    """
    if name.startswith(PREFIX):
        return {"model": name}, {}
    try:
        folder = locate(name, revision, fetch=fetch)
    except RetrievoError:
        if fetch:
            raise
        return {"model": name, "revision": revision}, {}
    files = tuple(path for part in _parts(folder) for path in _files(part))
    given = Input(folder, _fingerprint(folder, files, name), files)
    if folder != Path(name).expanduser():  # a snapshot in the hub's cache: models--ORG--NAME/snapshots/COMMIT
        given = replace(given, name=name, revision=folder.name)
    return {}, {"model": given}


def _parts(folder: Path) -> Iterator[Path]:
    """A model folder and its subfolders for modules and roles, without checkpoints and exports."""
    yield folder
    for module in _modules(folder):
        part = folder / str(module.get("path", ""))
        if part != folder and part.is_dir() and part.name not in ROLES:
            yield part
    for role in ROLES:
        if (folder / role).is_dir():
            yield from _parts(folder / role)


def _modules(folder: Path) -> list[Mapping[str, Any]]:
    try:
        found = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # whoever opens the model says what is wrong with it
        return []
    return [module for module in found if isinstance(module, dict)] if isinstance(found, list) else []


def _files(folder: Path) -> list[Path]:
    found = {path for pattern in WEIGHTS for path in folder.glob(pattern) if path.is_file()}
    return sorted(path for path in found if path.name not in _ASIDE)


def _fingerprint(folder: Path, files: tuple[Path, ...], name: str) -> str:
    """A hash of all that determines vectors: names, sizes and content of files, and properties from the model card.

    Of a large file, only 64 evenly spaced samples are read, since training changes every weight.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= _SAMPLE * _SAMPLES:
                digest.update(file.read())
                continue
            for number in range(_SAMPLES):
                file.seek((size - _SAMPLE) * number // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
    for base in _bases(folder):
        digest.update(
            _fingerprint(base, tuple(path for part in _parts(base) for path in _files(part)), str(base)).encode()
        )
    if facts := assumed(folder, name):
        digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()


def _bases(folder: Path) -> Iterator[Path]:
    """Yields the folders of base weights for adapters in a model folder, where they are elsewhere."""
    for part in _parts(folder):
        with contextlib.suppress(RetrievoError):  # whoever opens the model says what is wrong with it
            if (base := base_folder(part)) is not None:
                yield base


def recorded_model(manifest: Manifest, flag: str) -> tuple[str, str | None]:
    """Name and revision of the model that a manifest records; `flag` is what to pass where it is gone.

    Raises: RetrievoError where no model is recorded or its folder was moved away.
    """
    if "model" in manifest.config:
        return manifest.config["model"], manifest.config.get("revision")
    recorded = manifest.inputs.get("model")
    if recorded is None:
        raise RetrievoError(manifest.home, "its manifest records no model", None, f"pass {flag}")
    if "name" in recorded:
        return recorded["name"], recorded["revision"]
    return str(manifest.input_path("model", flag)), None


def unchanged_model(manifest: Manifest, flag: str) -> tuple[str, str | None]:
    """The model that a manifest records, checked to be still the one that made these vectors.

    Raises: as `recorded_model`; RetrievoError where the files of the model have changed.
    """
    name, revision = recorded_model(manifest, flag)
    _, found = model_record(name, revision)
    if found and found["model"].fingerprint != manifest.inputs.get("model", {}).get("fingerprint"):
        fix = f"encode the texts again, or pass {flag}"
        raise RetrievoError(name, "has changed since it encoded these vectors", "the model as it was", fix)
    return name, revision


def model_name(manifest: Manifest) -> str:
    """The model that made vectors, for a message: hub name and commit, or folder, and its pooling."""
    recorded = manifest.inputs.get("model")
    if recorded is None:
        return str(manifest.config.get("model", IMPORTED))
    name = str(manifest.home / recorded["path"])
    if "name" in recorded:
        name = f"{recorded['name']} at commit {recorded['revision']}"
    given = {key: manifest.config[key] for key in ("pooling", "truncate_dim") if manifest.config.get(key) is not None}
    return name + "".join(f", {key} {value}" for key, value in given.items())


def makes_vectors(manifest: Manifest) -> tuple[object, ...]:
    """Everything besides the texts that determines embeddings; vectors are comparable where it is equal."""
    return (
        manifest.inputs.get("model", {}).get("fingerprint"),
        manifest.config.get("pooling"),
        manifest.config.get("truncate_dim"),
    )


def check_same_model(path: Path, one: Manifest, other_path: Path, other: Manifest) -> None:
    """Raises RetrievoError, naming both models, where embeddings were not encoded by one and the same."""
    if makes_vectors(one) != makes_vectors(other):
        found = f"was encoded by another model than {other_path}: by {model_name(one)}; that by {model_name(other)}"
        raise RetrievoError(path, found, "vectors of one model", "encode it again")


def shows_titles(name: str | None, template: str | None) -> bool:
    """Whether documents are read with titles, by the given title template or else by that of the model folder.

    A model without a template reads titles.
    """
    files = [Path(name) / file for file in (SPEC_FILE, CROSS_ENCODER_FILE)] if name else []
    if template is None and (stated := next((file for file in files if file.is_file()), None)):
        template = json.loads(stated.read_text(encoding="utf-8")).get("title_template")
    return template is None or "{title}" in template

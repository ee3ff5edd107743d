"""Where a model comes from, as manifests record it: a folder with its fingerprint, or a hub name with its revision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retrievo.support.artifact import MANIFEST, Input, Manifest
from retrievo.support.errors import RetrievoError

FIXED_DOCUMENTS = "fixed-documents"  # input of a model: the vectors that its query encoder was trained against
WEIGHTS = ("*.safetensors", "*.json", "*.txt", "*.model")


def model_record(name: str, revision: str | None) -> tuple[dict[str, Any], dict[str, Input]]:
    """What the `config` and the `inputs` of a manifest say of a model: the one of a hub name, the other of a folder."""
    folder = Path(name)
    if not folder.is_dir():
        return {"model": name, "revision": revision}, {}
    if (folder / MANIFEST).is_file():
        return {}, {"model": Input.of(folder)}
    files = sorted(path for pattern in WEIGHTS for path in folder.rglob(pattern))
    return {}, {"model": Input.of(folder, files)}


def recorded_model(manifest: Manifest, flag: str) -> tuple[str, str | None]:
    """Name and revision of the model that a manifest records; `flag` is what to pass where it is gone.

    Raises: RetrievoError where no model is recorded or its folder was moved away.
    """
    if "model" in manifest.config:
        return manifest.config["model"], manifest.config.get("revision")
    if "model" not in manifest.inputs:
        raise RetrievoError(manifest.home, "its manifest knows no model", None, f"pass {flag}")
    return str(manifest.input_path("model", flag)), None

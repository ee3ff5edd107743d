"""Saves model folders that give the same vectors in retrievo, transformers and sentence-transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from retrievo.models.checkpoints import quiet
from retrievo.models.encoder_spec import ROLES, SPEC_FILE, EncoderSpec
from retrievo.models.loading import POOLING_FLAGS, POOLING_NAMES
from retrievo.models.model_card import model_card
from retrievo.models.tokens import bare
from retrievo.support.files import atomic_path, remove
from retrievo.support.values import Values

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def write_folder(
    folder: Path,
    spec: EncoderSpec,
    backbones: Mapping[str, PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    facts: Mapping[str, object],
) -> None:
    """Writes a model folder: first all files into a folder beside it, then moves each, `retrievo.json` last.

    backbones: role -> model; "document" alone where the encoder is tied. The same weights give the same bytes.
    """
    staging = folder / ".saving"
    remove(staging)
    staging.mkdir(parents=True)
    if spec.tied:
        _write_encoder(staging, spec, backbones["document"], tokenizer)
    else:
        for role in ROLES:
            _write_encoder(staging / role, _one_role(spec, role), backbones[role], tokenizer)
        _write_router(staging, spec)
    dim = backbones["document"].config.hidden_size
    (staging / "README.md").write_text(model_card(spec, dim, facts), encoding="utf-8")
    (staging / SPEC_FILE).write_text(spec.to_json(), encoding="utf-8")
    move_into_place(staging, folder, last=SPEC_FILE)


def move_into_place(staging: Path, folder: Path, last: str) -> None:
    """Moves each file of a finished folder into another one; `last` names the file that marks it complete."""
    files = [path for path in staging.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: (path == staging / last, path)):
        shutil.copymode(staging / last, path)  # safetensors writes files that only their owner reads
        with atomic_path(folder / path.relative_to(staging)) as temporary:
            path.replace(temporary)
    remove(staging)


def _one_role(spec: EncoderSpec, role: str) -> EncoderSpec:
    length = spec.max_length(role)
    return replace(spec, tied=True, query_max_length=length, document_max_length=length)


def _write_encoder(
    folder: Path, spec: EncoderSpec, backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with quiet():
        backbone.save_pretrained(folder)
    write_tokenizer(folder, max(spec.query_max_length, spec.document_max_length), tokenizer)
    _write_sentence_transformers(folder, spec, backbone.config.hidden_size)


def write_tokenizer(folder: Path, max_length: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """`tokenizer.json` without truncation and padding, and a configuration that reads it as it stands.

    The classes of transformers 5 for one model (`BertTokenizer`) build their own normalizer and ignore the file's.
    """
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    path.write_text(bare(tokenizer.backend_tokenizer.to_str()), encoding="utf-8")
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    for key in ("max_length", "stride", "truncation_strategy", "pad_to_multiple_of", "is_local", "local_files_only"):
        config.pop(key, None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["model_input_names"] = tokenizer.model_input_names
    config["model_max_length"] = max_length
    _dump(folder / "tokenizer_config.json", dict(sorted(config.items())))


def _write_sentence_transformers(folder: Path, spec: EncoderSpec, dim: int) -> None:
    names = ["Transformer", "Pooling", *(["Normalize"] if spec.normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    _dump(folder / "modules.json", [_module(index, paths[index], name) for index, name in enumerate(names)])
    pooling = {f: POOLING_NAMES.get(mode) == spec.pooling for f, mode in POOLING_FLAGS.items()}
    _dump(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": dim, **pooling, "include_prompt": True})
    if spec.normalize:
        keys = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
        _dump(folder / "2_Normalize" / "config.json", keys)
    lengths = {role: spec.max_length(role) for role in ROLES}
    config: Values = {"max_seq_length": max(lengths.values()), "do_lower_case": False}
    if len(set(lengths.values())) > 1:  # read since sentence-transformers 6; an older one refuses rather than differ
        config |= {f"{role}_length": length for role, length in lengths.items()}
    _dump(folder / "sentence_bert_config.json", config)
    _write_prompts(folder, spec)


def _write_prompts(folder: Path, spec: EncoderSpec) -> None:
    config = {
        "model_type": "SentenceTransformer",
        "prompts": {role: spec.prefix(role) for role in ROLES},
        "default_prompt_name": None,
        "similarity_fn_name": spec.similarity,
    }
    _dump(folder / "config_sentence_transformers.json", config)


def _write_router(folder: Path, spec: EncoderSpec) -> None:
    """Writes an untied encoder as one SentenceTransformer that routes `encode_query` and `encode_document`."""
    parts = {"": "Transformer", "1_Pooling": "Pooling", **({"2_Normalize": "Normalize"} if spec.normalize else {})}
    structure = {role: [f"{role}/{path}".rstrip("/") for path in parts] for role in ROLES}
    types = {
        f"{role}/{path}".rstrip("/"): f"sentence_transformers.models.{kind}"
        for role in ROLES
        for path, kind in parts.items()
    }
    config = {"types": types, "structure": structure, "parameters": {"default_route": "document"}}
    _dump(folder / "router_config.json", config)
    _dump(folder / "modules.json", [_module(0, "", "Router")])
    _write_prompts(folder, spec)


def _module(index: int, path: str, name: str) -> Values:
    return {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}


def _dump(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

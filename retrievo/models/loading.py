"""Opens model folders: the properties that a folder states, its backbone and its tokenizer.

Three kinds are read: retrievo's own (`retrievo.json`), sentence-transformers' (`modules.json`) and plain Hugging Face
checkpoints. Properties that a folder does not state are taken from `MODEL_CARDS`, else assumed, with a note.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrievo.models.checkpoints import (
    ADAPTER_FILE,
    adapters_in_subfolders,
    base_folder,
    open_checkpoint,
    quiet,
    read_json,
)
from retrievo.models.encoder_spec import CROSS_ENCODER_FILE, ROLES, SPEC_FILE, EncoderSpec
from retrievo.support.artifact import is_unfinished
from retrievo.support.errors import RetrievoError
from retrievo.support.values import Values

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# properties that are in the authors' model cards but not in the folders, by the last part of the model's name
MODEL_CARDS: dict[str, Values] = {
    r"contriever(-msmarco)?|mcontriever(-msmarco)?": {"pooling": "mean"},
    r"(multilingual-)?e5-(small|base|large)(-v2|-unsupervised)?": {
        "pooling": "mean",
        "normalize": True,
        "similarity": "cosine",
        "query_prefix": "query: ",
        "document_prefix": "passage: ",
    },
    r"bge-(small|base|large)-en(-v1\.5)?": {
        "pooling": "cls",
        "normalize": True,
        "similarity": "cosine",
        "query_prefix": "Represent this sentence for searching relevant passages: ",
    },
}
# sentence-transformers' names of poolings -> retrievo's: `pooling_mode` since version 5.4, a flag for each before
POOLING_NAMES = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
PROMPTS = {"query_prefix": ("query",), "document_prefix": ("document", "passage", "corpus")}


@dataclass
class Reading:
    """The content of a model folder: stated fields of an EncoderSpec, folders of backbones, notices for the user."""

    backbones: dict[str, Path]  # role -> folder of a Hugging Face checkpoint; a tied encoder has "document" only
    stated: Values = field(default_factory=dict)
    max_length: int | None = None  # of both roles, where none is stated for a role
    lowercase: bool = False
    own: bool = False
    notices: list[str] = field(default_factory=list)


def read_folder(folder: Path, name: str, chosen: Collection[str] = ()) -> Reading:
    """Reads a model folder of any kind.

    name:   the name that the user gave for it.
    chosen: fields that the user sets, which are not taken from a model card.

    Raises: RetrievoError for a folder that is not a model, or has settings that an encoder does not support.
    """
    if (folder / CROSS_ENCODER_FILE).is_file():
        raise RetrievoError(name, "is a cross-encoder", "a model that gives vectors", "use it with retrievo rerank")
    if (folder / SPEC_FILE).is_file():
        return _read_own(folder)
    if (folder / "modules.json").is_file():
        reading = _read_sentence_transformers(folder)
    elif base := base_folder(folder):
        return _read_adapter(folder, name, read_folder(base, str(base), chosen))
    elif (folder / "config.json").is_file():
        reading = Reading({"document": folder})
    else:
        raise _no_model(folder, name, SPEC_FILE)
    _add_model_card(reading, name, chosen)
    _tell_unused_adapters(reading, name)
    return reading


def read_cross_encoder(folder: Path, name: str, *, fresh_head: bool) -> Reading:
    """Reads the folder of a cross-encoder: where its checkpoint is, and how it reads pairs.

    fresh_head: whether the folder may also hold an encoder, of which only the checkpoint and tokenizer are used.

    Raises: RetrievoError for a folder that is no model, or has settings that a cross-encoder does not support.
    """
    if (folder / CROSS_ENCODER_FILE).is_file():
        return Reading({"document": folder}, own=True)
    if (folder / "modules.json").is_file():
        reading = _read_their_cross_encoder(folder, name, fresh_head)
    elif base := base_folder(folder):
        reading = _read_adapter(folder, name, read_cross_encoder(base, str(base), fresh_head=True))
    elif (folder / "config.json").is_file():
        reading = Reading({"document": folder})
    else:
        raise _no_model(folder, name, CROSS_ENCODER_FILE)
    _tell_unused_adapters(reading, name)
    return reading


def _no_model(folder: Path, name: str, own: str) -> RetrievoError:
    if is_unfinished(folder):
        return RetrievoError(name, "is unfinished", None, "run the command that makes it again")
    return RetrievoError(name, "no model", f"{own}, modules.json, config.json or {ADAPTER_FILE} in this folder")


def _read_adapter(folder: Path, name: str, base: Reading) -> Reading:
    """Reads an adapter: the folder of its model determines the properties."""
    if "query" in base.backbones:
        raise RetrievoError(name, "an adapter of an encoder with a model for each role", "one of a single model")
    base.notices.append(
        f"{name}: an adapter of {base.backbones['document']}, merged into it and read as that folder says"
    )
    base.backbones, base.own = {"document": folder}, False
    return base


def _tell_unused_adapters(reading: Reading, name: str) -> None:
    for folder in reading.backbones.values():
        if not (folder / ADAPTER_FILE).is_file() and (unused := adapters_in_subfolders(folder)):
            where = "lies in a folder of its own" if len(unused) == 1 else "lie in folders of their own"
            reading.notices.append(f"{name}: {', '.join(unused)} {where} there as adapter and is not applied")


def says_encoder(folder: Path) -> bool:
    """Whether a folder says that its model gives vectors; a plain checkpoint says neither that nor the contrary."""
    if (folder / SPEC_FILE).is_file() or not (folder / "modules.json").is_file():
        return (folder / SPEC_FILE).is_file()
    # sentence-transformers writes modules for its cross-encoders too
    return "Pooling" in {_kind(str(module["type"])) for module in _modules(folder)}


def _read_own(folder: Path) -> Reading:
    path = folder / SPEC_FILE
    spec = EncoderSpec.from_json(path.read_text(encoding="utf-8"), path)
    backbones = {"document": folder} if spec.tied else {role: folder / role for role in ROLES}
    return Reading(backbones, stated=vars(spec).copy(), own=True)


def assumed(folder: Path, name: str) -> Values:
    """The properties from the card of a model with this name that its folder does not state."""
    if any((folder / own).is_file() for own in (SPEC_FILE, CROSS_ENCODER_FILE)):
        return {}
    facts = _card(name)
    try:
        stated = read_folder(folder, name, tuple(facts)).stated
    except RetrievoError:  # whoever opens the model says what is wrong with it
        return {}
    return {key: value for key, value in facts.items() if key not in stated}


def _card(name: str) -> Values:
    last = name.rstrip("/").rsplit("/", 1)[-1]
    return next((facts for pattern, facts in MODEL_CARDS.items() if re.fullmatch(pattern, last, re.IGNORECASE)), {})


def _add_model_card(reading: Reading, name: str, chosen: Collection[str]) -> None:
    last, facts = name.rstrip("/").rsplit("/", 1)[-1], _card(name)
    added = {key: value for key, value in facts.items() if key not in reading.stated and key not in chosen}
    reading.stated.update(added)
    if added:
        settings = ", ".join(f"{key} = {value!r}" for key, value in added.items())
        reading.notices.append(f"{name}: {settings}, as the model card of {last} says (its folder does not)")


# Reading sentence-transformers


def _read_sentence_transformers(folder: Path) -> Reading:
    modules = {_kind(str(module["type"])): folder / module["path"] for module in _modules(folder)}
    kinds = [_kind(str(module["type"])) for module in _modules(folder)]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        found = f"the modules {', '.join(kinds)}"
        raise RetrievoError(folder / "modules.json", found, "Transformer, Pooling and, at most, Normalize")
    reading = Reading({"document": modules["Transformer"]})
    # Normalize keeps nothing on disk: packages that cannot carry an empty folder name one that is not there
    reading.stated["normalize"] = "Normalize" in modules
    if reading.stated["normalize"]:
        _check_normalize(modules["Normalize"] / "config.json")
    _read_pooling(modules["Pooling"] / "config.json", reading)
    _read_prompts_and_similarity(folder / "config_sentence_transformers.json", reading)
    _read_transformer(modules["Transformer"], reading, "feature-extraction")
    return reading


def _read_their_cross_encoder(folder: Path, name: str, fresh_head: bool) -> Reading:
    """A cross-encoder of sentence-transformers since 5.4; with `fresh_head` the checkpoint of an encoder too."""
    modules = {_kind(str(module["type"])): folder / module["path"] for module in _modules(folder)}
    path = folder / "config_sentence_transformers.json"
    config = read_json(path) if path.is_file() else {}
    if fresh_head and "Transformer" in modules and config.get("model_type") != "CrossEncoder":
        reading = Reading({"document": modules["Transformer"]})
        _read_transformer(modules["Transformer"], reading, "feature-extraction")
        return reading
    if len(_modules(folder)) != 1 or "Transformer" not in modules:
        fix = None if fresh_head else "train one: retrievo train --kind cross-encoder"
        raise RetrievoError(name, f"is no cross-encoder: it has the modules {', '.join(modules)}", "Transformer", fix)
    reading = Reading({"document": modules["Transformer"]})
    _read_transformer(modules["Transformer"], reading, "sequence-classification")
    default, prompts = config.get("default_prompt_name"), config.get("prompts") or {}
    if default and default not in prompts:
        raise RetrievoError(path, f"default_prompt_name = {default!r}", f"one of its prompts ({', '.join(prompts)})")
    reading.stated["query_prefix"] = (
        prompts.get(default) if default else ""
    ) or ""  # they put it before the first text
    if config.get("activation_fn"):
        reading.stated["activation"] = config["activation_fn"]
    return reading


def _check_normalize(path: Path) -> None:
    config = read_json(path) if path.is_file() else {}
    for key, value in config.items():
        if value not in (None, "sentence_embedding"):
            raise RetrievoError(path, f"{key} = {value!r}", "Normalize of whole vectors (sentence_embedding)")


def _kind(module: str) -> str:
    """`Pooling` by any name that sentence-transformers gave it; code that comes with a model keeps its full name."""
    return module.rsplit(".", 1)[-1] if module.startswith("sentence_transformers.") else module


def _modules(folder: Path) -> list[Values]:
    modules = read_json(folder / "modules.json")
    if not isinstance(modules, list) or not all(isinstance(m, dict) and {"type", "path"} <= m.keys() for m in modules):
        raise RetrievoError(folder / "modules.json", "no list of modules", "what sentence-transformers writes")
    return modules


def _read_pooling(path: Path, reading: Reading) -> None:
    config = read_json(path)
    modes = config.get("pooling_mode") or [mode for flag, mode in POOLING_FLAGS.items() if config.get(flag)]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in POOLING_NAMES:
        raise RetrievoError(path, f"pooling {' + '.join(modes) or 'none'}", f"one of {', '.join(POOLING_NAMES)}")
    if not config.get("include_prompt", True):
        raise RetrievoError(path, "include_prompt = false", "pooling over all tokens, those of the prompt too")
    reading.stated["pooling"] = POOLING_NAMES[modes[0]]


def _read_prompts_and_similarity(path: Path, reading: Reading) -> None:
    config = read_json(path) if path.is_file() else {}
    if config.get("truncate_dim"):
        raise RetrievoError(path, f"truncate_dim = {config['truncate_dim']}", "vectors of full length")
    if (kind := config.get("model_type", "SentenceTransformer")) != "SentenceTransformer":
        raise RetrievoError(path, f"a {kind}", "a SentenceTransformer")
    _read_prompts(path, config.get("prompts") or {}, reading)
    similarity = config.get("similarity_fn_name")
    if similarity:
        reading.stated["similarity"] = similarity
    elif reading.stated["normalize"]:
        reading.stated["similarity"] = "cosine"  # equal to dot then


def _read_prompts(path: Path, prompts: Mapping[str, str], reading: Reading) -> None:
    """Prompts by the names in use: query; document, passage (E5) or corpus; `retrieval.query` and the like."""
    names = {re.sub(r"^retrieval[._-]", "", name.lower()): name for name in prompts}
    for key, known in PROMPTS.items():
        found = [prompts[names[name]] for name in known if name in names]
        if found:  # sentence-transformers fills an unset "document" with "", which must not hide a "passage"
            reading.stated[key] = next((text for text in found if text), "")
    if prompts and not set(PROMPTS) & reading.stated.keys():
        reading.notices.append(
            f"{path}: none of the prompts {', '.join(prompts)} is for queries or documents; none is used"
        )


def _read_transformer(folder: Path, reading: Reading, task: str) -> None:
    """Reads lengths and lower-casing from a Transformer module's settings; unknown settings are refused."""
    found = sorted(folder.glob("sentence_*_config.json"))  # sentence_bert_config.json, in old ones sentence_roberta_...
    if not found:
        return
    config = read_json(found[0])
    arguments = config.get("processor_kwargs") or config.get("tokenizer_args") or {}
    _check_transformer(found[0], config, task)
    reading.max_length = arguments.get("model_max_length") or config.get("max_seq_length")
    reading.lowercase = bool(config.get("do_lower_case"))
    for role in ROLES if task == "feature-extraction" else ():
        if length := config.get(f"{role}_length"):
            reading.stated[f"{role}_max_length"] = length


# the settings of their Transformer module: each with the keys that are read, or change no number here, inside
_SETTINGS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("max_seq_length", "do_lower_case", "query_length", "document_length", "unpad_inputs"), ()),
    **dict.fromkeys(("transformer_task", "modality_config", "module_output_name"), ()),
    **dict.fromkeys(("processor_kwargs", "tokenizer_args"), ("model_max_length", "padding_side", "use_fast")),
    **dict.fromkeys(("model_kwargs", "model_args"), ("dtype", "torch_dtype", "attn_implementation", "use_safetensors")),
    **dict.fromkeys(("config_kwargs", "config_args"), ("use_cache",)),
}
_ALWAYS_FINE = ("trust_remote_code", "token", "cache_dir", "revision", "local_files_only", "subfolder")
_OUTPUTS = {"feature-extraction": "last_hidden_state", "sequence-classification": "logits"}


def _check_transformer(path: Path, config: Mapping[str, Any], task: str) -> None:
    forward = (config.get("modality_config") or {}).get("text")
    output = (forward or {}).get("method_output_name", _OUTPUTS[task])
    if config.get("transformer_task", task) != task or "message" in (config.get("modality_config") or {}):
        kind = "an encoder" if task == "feature-extraction" else "a sequence classifier"
        raise RetrievoError(path, "a chat or generation model", f"{kind} of plain text")
    if output != _OUTPUTS[task]:
        raise RetrievoError(path, f"method_output_name = {output!r}", f"{_OUTPUTS[task]!r}")
    for key, value in config.items():
        known = (*_SETTINGS.get(key, ()), *_ALWAYS_FINE)
        inside = [name for name in value if name not in known] if isinstance(value, dict) else []
        if value and key not in _SETTINGS:
            raise RetrievoError(path, f"{key} = {value!r}", "settings of a Transformer module that are known here")
        if key != "modality_config" and any(value[name] is not None for name in inside):
            raise RetrievoError(
                path, f"{key} with {', '.join(inside)}", "settings that leave the model as its files are"
            )


# Opening checkpoints


def open_backbone(folder: Path, name: str | None = None) -> PreTrainedModel:
    """The Transformer of a Hugging Face checkpoint in float32, without pooler and without any head (MLM or other).

    name: what the user calls it, where that is not the folder.

    Raises: RetrievoError for weights that do not fill the model, unfit architectures, and as `open_checkpoint` does.
    """
    from transformers import MODEL_MAPPING, AutoModel

    def arguments(config: Any) -> Values:
        _refuse_unfit(folder, config)
        return {"add_pooling_layer": False} if _takes_pooler(MODEL_MAPPING.get(type(config), None)) else {}

    model, info = open_checkpoint(folder, name or str(folder), AutoModel, arguments)
    if missing := sorted([*info["missing_keys"], *map(str, info["mismatched_keys"])]):
        found = f"{len(missing)} weights are not in the checkpoint or of another shape ({missing[0]}, ...)"
        raise RetrievoError(folder, found, "a checkpoint that holds the whole model")
    return model


def _takes_pooler(model_class: Any) -> bool:
    import inspect

    return model_class is not None and "add_pooling_layer" in inspect.signature(model_class.__init__).parameters


def _refuse_unfit(folder: Path, config: Any) -> None:
    if config.is_encoder_decoder or config.model_type == "dpr":
        kind = "an encoder-decoder" if config.is_encoder_decoder else "a DPR wrapper"
        raise RetrievoError(folder, f"{kind} ({config.model_type})", "a model that gives one vector per token")


def open_tokenizer(folder: Path, lowercase: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint as transformers means it.

    Raises: RetrievoError for a folder without one, or one that the `tokenizers` library can't run.
    """
    from transformers import AutoTokenizer

    # transformers 5 makes up a tokenizer of five tokens where there is none
    if not _has_tokenizer(folder) and (base := base_folder(folder)):
        return open_tokenizer(base, lowercase)
    if not _has_tokenizer(folder):
        raise RetrievoError(folder, "no tokenizer", "tokenizer.json, or a vocabulary that transformers reads")
    path = folder / "tokenizer_config.json"
    if custom := (read_json(path) if path.is_file() else {}).get("auto_map"):
        raise RetrievoError(path, f"code that comes with the tokenizer ({custom})", "a tokenizer of transformers")
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # many kinds, from files that are missing to packages that are
        raise RetrievoError(folder, f"no tokenizer that transformers opens ({error})") from error
    if not getattr(tokenizer, "is_fast", False):
        raise RetrievoError(folder, "a tokenizer in Python", "one with tokenizer.json")
    if tokenizer.pad_token_id is None:  # as decoders are published; padding is masked, so any token will do
        if tokenizer.eos_token_id is None:
            raise RetrievoError(folder, "a tokenizer without padding token", "one with a padding or an end token")
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.truncation_side != "right":
        raise RetrievoError(folder, "a tokenizer that truncates on the left", "truncation on the right")
    if lowercase:
        _add_lowercase(tokenizer)
    return tokenizer


def _has_tokenizer(folder: Path) -> bool:
    return any(any(folder.glob(pattern)) for pattern in ("tokenizer.json", "vocab.*", "*.model", "tekken.json"))


def check_vocabulary(name: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Raises RetrievoError where a tokenizer has tokens that a model has no vector for."""
    embeddings: Any = model.get_input_embeddings()
    last, vectors = max(tokenizer.get_vocab().values()), len(embeddings.weight)
    if last >= vectors:
        found = f"{last + 1} tokens in the tokenizer"
        raise RetrievoError(name, found, f"at most the {vectors} that the backbone has vectors for")


def _add_lowercase(tokenizer: PreTrainedTokenizerBase) -> None:
    from tokenizers.normalizers import Lowercase, Sequence

    backend = tokenizer.backend_tokenizer
    backend.normalizer = Sequence([Lowercase(), *([backend.normalizer] if backend.normalizer else [])])

"""Opening model folders: what a folder means, its backbone and its tokenizer.

Three kinds are read: our own (`retrievo.json`), sentence-transformers' (`modules.json`) and plain Hugging Face
checkpoints. What a folder does not state is taken from `MODEL_CARDS`, else guessed, and said.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrievo.models.spec import CROSS_ENCODER_FILE, ROLES, SPEC_FILE, EncoderSpec
from retrievo.support.artifact import is_unfinished
from retrievo.support.errors import RetrievoError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# what the authors' model cards say and their folders do not, by the last part of the model's name
MODEL_CARDS: dict[str, dict[str, Any]] = {
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
# their names for pooling -> ours: `pooling_mode` since sentence-transformers 5.4, one flag each before
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
DOWNLOADS = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


@dataclass
class Reading:
    """What a folder says: fields of an EncoderSpec that it states, where its backbones are, what to tell the user."""

    backbones: dict[str, Path]  # role -> folder of a Hugging Face checkpoint; a tied encoder has "document" only
    stated: dict[str, Any] = field(default_factory=dict)
    max_length: int | None = None  # of both roles, where none is stated for a role
    lowercase: bool = False
    own: bool = False
    notices: list[str] = field(default_factory=list)


def locate(name: str, revision: str | None, *, fetch: bool = True) -> Path:
    """The folder that a model name means: itself, or a copy of a hub model in the local cache.

    fetch: whether a hub model that the cache lacks is fetched.
    Raises: RetrievoError where there is no such folder and no such hub model, or it can't be fetched.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or path.exists()
    if looks_local or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise _not_found(name, "is a file" if path.is_file() else "no folder of this name")
    try:
        from huggingface_hub import snapshot_download

        skip = ["onnx/*", "openvino/*"]
        given: dict[str, Any] = {"allow_patterns": DOWNLOADS, "ignore_patterns": skip, "local_files_only": not fetch}
        return Path(snapshot_download(name, revision=revision, **given))
    except Exception as error:  # the hub's errors share no base class with those of its HTTP library
        reason = f"no folder of this name, and not to be had from the Hugging Face hub ({type(error).__name__})"
        raise _not_found(name, reason) from error


def _not_found(name: str, reason: str) -> RetrievoError:
    fix = "give --model PATH of a model folder, or begin from nothing: retrievo pretrain --model scratch:small"
    return RetrievoError(name, reason, fix=fix)


def read_folder(folder: Path, name: str, chosen: Collection[str] = ()) -> Reading:
    """Reads what `folder` says, whichever kind it is.

    name: what the user calls it; chosen: fields that the user sets, for which nothing is taken from a model card.

    Raises: RetrievoError for a folder that is no model, or means something that an encoder here can't do.
    """
    if (folder / CROSS_ENCODER_FILE).is_file():
        raise RetrievoError(name, "is a cross-encoder", "a model that gives vectors", "use it with retrievo rerank")
    if (folder / SPEC_FILE).is_file():
        return _read_own(folder)
    if (folder / "modules.json").is_file():
        reading = _read_sentence_transformers(folder)
    elif (folder / "config.json").is_file():
        reading = Reading({"document": folder})
    elif is_unfinished(folder):
        raise RetrievoError(name, "is unfinished", None, "run the command that makes it again")
    else:
        raise RetrievoError(name, "no model", f"{SPEC_FILE}, modules.json or config.json in this folder")
    _add_model_card(reading, name, chosen)
    return reading


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


def assumed(folder: Path, name: str) -> dict[str, Any]:
    """What is taken from the card of a model of this name, because its folder does not state it."""
    if any((folder / own).is_file() for own in (SPEC_FILE, CROSS_ENCODER_FILE)):
        return {}
    facts = _card(name)
    try:
        stated = read_folder(folder, name, tuple(facts)).stated
    except RetrievoError:  # whoever opens the model says what is wrong with it
        return {}
    return {key: value for key, value in facts.items() if key not in stated}


def _card(name: str) -> dict[str, Any]:
    last = name.rstrip("/").rsplit("/", 1)[-1]
    return next((facts for pattern, facts in MODEL_CARDS.items() if re.fullmatch(pattern, last, re.IGNORECASE)), {})


def _add_model_card(reading: Reading, name: str, chosen: Collection[str]) -> None:
    last, facts = name.rstrip("/").rsplit("/", 1)[-1], _card(name)
    added = {key: value for key, value in facts.items() if key not in reading.stated and key not in chosen}
    reading.stated.update(added)
    if added:
        told = ", ".join(f"{key} = {value!r}" for key, value in added.items())
        reading.notices.append(f"{name}: {told}, as the model card of {last} says (its folder does not)")


# Reading sentence-transformers


def _read_sentence_transformers(folder: Path) -> Reading:
    modules = {_kind(str(module["type"])): folder / module["path"] for module in _modules(folder)}
    kinds = list(modules)
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        found = f"the modules {', '.join(kinds)}"
        raise RetrievoError(folder / "modules.json", found, "Transformer, Pooling and, at most, Normalize")
    reading = Reading({"document": modules["Transformer"]})
    # Normalize keeps nothing on disk: packages that cannot carry an empty folder name one that is not there
    reading.stated["normalize"] = "Normalize" in modules
    _read_pooling(modules["Pooling"] / "config.json", reading)
    _read_prompts_and_similarity(folder / "config_sentence_transformers.json", reading)
    _read_lengths(modules["Transformer"], reading)
    return reading


def _kind(module: str) -> str:
    """`Pooling` by any name that sentence-transformers gave it; code that comes with a model keeps its full name."""
    return module.rsplit(".", 1)[-1] if module.startswith("sentence_transformers.") else module


def _modules(folder: Path) -> list[dict[str, Any]]:
    modules = _json(folder / "modules.json")
    if not isinstance(modules, list) or not all(isinstance(m, dict) and {"type", "path"} <= m.keys() for m in modules):
        raise RetrievoError(folder / "modules.json", "no list of modules", "what sentence-transformers writes")
    return modules


def _read_pooling(path: Path, reading: Reading) -> None:
    config = _json(path)
    modes = config.get("pooling_mode") or [mode for flag, mode in POOLING_FLAGS.items() if config.get(flag)]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in POOLING_NAMES:
        raise RetrievoError(path, f"pooling {' + '.join(modes) or 'none'}", f"one of {', '.join(POOLING_NAMES)}")
    if not config.get("include_prompt", True):
        raise RetrievoError(path, "include_prompt = false", "pooling over all tokens, those of the prompt too")
    reading.stated["pooling"] = POOLING_NAMES[modes[0]]


def _read_prompts_and_similarity(path: Path, reading: Reading) -> None:
    config = _json(path) if path.is_file() else {}
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


def _read_lengths(folder: Path, reading: Reading) -> None:
    found = sorted(folder.glob("sentence_*_config.json"))  # sentence_bert_config.json, in old ones sentence_roberta_...
    config = _json(found[0]) if found else {}
    arguments = config.get("processor_kwargs") or config.get("tokenizer_args") or {}
    task = config.get("transformer_task", "feature-extraction")
    if task != "feature-extraction" or "message" in (config.get("modality_config") or {}):
        raise RetrievoError(found[0], "a chat or generation model", "an encoder of plain text")
    reading.max_length = arguments.get("model_max_length") or config.get("max_seq_length")
    reading.lowercase = bool(config.get("do_lower_case"))
    for role in ROLES:
        if length := config.get(f"{role}_length"):
            reading.stated[f"{role}_max_length"] = length


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise RetrievoError(path, f"not readable ({error})", "a JSON file") from error


# Opening checkpoints


def open_backbone(folder: Path, name: str | None = None) -> PreTrainedModel:
    """The Transformer of a Hugging Face checkpoint in float32, without pooler and without any head (MLM or other).

    name: what the user calls it, where that is not the folder.

    Raises: RetrievoError for weights that are not safetensors or do not fill the model, and for unfit architectures.
    """
    import torch
    from transformers import MODEL_MAPPING, AutoConfig, AutoModel

    require_safetensors(folder, name or str(folder))
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        arguments = {"add_pooling_layer": False} if _takes_pooler(MODEL_MAPPING.get(type(config), None)) else {}
        _refuse_unfit(folder, config)
        with quiet():
            model, info = AutoModel.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                **arguments,
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise RetrievoError(folder, f"not a checkpoint that transformers opens ({error})") from error
    if missing := sorted([*info["missing_keys"], *map(str, info["mismatched_keys"])]):
        found = f"{len(missing)} weights are not in the checkpoint or of another shape ({missing[0]}, ...)"
        raise RetrievoError(folder, found, "a checkpoint that holds the whole model")
    return model


def require_safetensors(folder: Path, name: str) -> None:
    """Raises RetrievoError where a checkpoint has no weights in safetensors, with the way to convert it."""
    if any((folder / file).is_file() for file in ("model.safetensors", "model.safetensors.index.json")):
        return
    steps = f"from transformers import AutoModel as M, AutoTokenizer as T; n='{name}'; "
    steps += "M.from_pretrained(n).save_pretrained('converted'); T.from_pretrained(n).save_pretrained('converted')"
    fix = (
        f'pickled weights (.bin) can run code: if you trust them, convert once: python -c "{steps}"; --model converted'
    )
    raise RetrievoError(name, "no weights in safetensors", "model.safetensors", fix)


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
    if not any(any(folder.glob(pattern)) for pattern in ("tokenizer.json", "vocab.*", "*.model", "tekken.json")):
        raise RetrievoError(folder, "no tokenizer", "tokenizer.json, or a vocabulary that transformers reads")
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


def _add_lowercase(tokenizer: PreTrainedTokenizerBase) -> None:
    from tokenizers.normalizers import Lowercase, Sequence

    backend = tokenizer.backend_tokenizer
    backend.normalizer = Sequence([Lowercase(), *([backend.normalizer] if backend.normalizer else [])])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No bars, and no reports: heads that are dropped are meant to be, and what is missing is an error."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """The same fresh weights every time, and the caller's random state left alone."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield

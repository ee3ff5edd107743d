"""Opens checkpoints with transformers; every setting that affects the outputs is either applied or refused by name.

A checkpoint is a folder with weights, with an adapter for weights stored elsewhere, or with both. An adapter is applied
by peft and merged; transformers would apply it only if peft is installed, and would save it without the weights.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrievo.support.errors import RetrievoError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER_FILE, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PREFIX = "base_model.model."  # what peft puts before the name of each weight
DOWNLOADS = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


def locate(name: str, revision: str | None, *, fetch: bool = True) -> Path:
    """The folder of a model: `name` itself if it is a folder, else the copy of a hub model in the local cache.

    fetch: whether to download a hub model that is not in the cache.
    Raises: RetrievoError where there is neither such a folder nor such a hub model, or it cannot be downloaded.
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


def open_checkpoint(
    folder: Path, name: str, auto_class: Any, arguments: Callable[[Any], dict[str, Any]] = lambda config: {}
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Opens a checkpoint in float32 with its adapter merged; also returns transformers' loading info.

    name:       the name that the user gave for the folder.
    auto_class: the transformers class to open it with.
    arguments:  a function from the model's config to further arguments of `from_pretrained`.

    Raises: RetrievoError for weights that are not safetensors, custom code, quantized weights, several adapters, an
    adapter that cannot be merged or does not fit, and anything that transformers cannot open.
    """
    import torch
    from transformers import AutoConfig

    base = base_folder(folder)
    require_safetensors(base or folder, name if base is None else str(base))
    if base or (folder / ADAPTER_FILE).is_file():
        _check_adapter(folder, name)
    weights = base or folder
    _refuse_what_is_not_applied(weights)
    try:
        config = AutoConfig.from_pretrained(weights, local_files_only=True, trust_remote_code=False)
        with quiet(), seeded():
            model, info = auto_class.from_pretrained(
                weights,
                config=config,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                adapter_kwargs={"subfolder": "none-by-itself"},  # else transformers applies it, where it finds peft
                **arguments(config),
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise RetrievoError(weights, f"not a checkpoint that transformers opens ({error})") from error
    if (folder / ADAPTER_FILE).is_file():
        brought = _merge_adapter(folder, model)
        info["missing_keys"] = set(info["missing_keys"]) - brought
        info["mismatched_keys"] = [key for key in info["mismatched_keys"] if key[0] not in brought]
    return model, info


def base_folder(folder: Path) -> Path | None:
    """The folder of the weights for the adapter in `folder`; None if they are beside it or there is no adapter.

    Raises: RetrievoError where the weights cannot be found.
    """
    path = folder / ADAPTER_FILE
    if not path.is_file() or any((folder / file).is_file() for file in WEIGHTS):
        return None
    config = read_json(path)
    name = config.get("base_model_name_or_path") or ""
    if name and (folder / name).is_dir():
        return folder / name
    try:
        return locate(name, config.get("revision"))
    except RetrievoError as error:
        fix = "write the folder of that model into base_model_name_or_path there"
        raise RetrievoError(path, f"an adapter of the model '{name}': {error.found}", "its weights", fix) from error


def require_safetensors(folder: Path, name: str) -> None:
    """Raises RetrievoError where a checkpoint has no weights in safetensors, with the way to convert it."""
    if any((folder / file).is_file() for file in WEIGHTS):
        return
    steps = f"from transformers import AutoModel as M, AutoTokenizer as T; n='{name}'; "
    steps += "M.from_pretrained(n).save_pretrained('converted'); T.from_pretrained(n).save_pretrained('converted')"
    fix = (
        f'pickled weights (.bin) can run code: if you trust them, convert once: python -c "{steps}"; --model converted'
    )
    raise RetrievoError(name, "no weights in safetensors", "model.safetensors", fix)


def _refuse_what_is_not_applied(folder: Path) -> None:
    path = folder / "config.json"
    config = read_json(path)
    if custom := config.get("auto_map"):
        classes = ", ".join(sorted(str(value) for value in custom.values()))
        fix = "where transformers' own class of this type gives the same, remove auto_map from the file"
        raise RetrievoError(path, f"code that comes with the model ({classes})", "a model of transformers", fix)
    if quantized := config.get("quantization_config") or config.get("compression_config"):
        method = quantized.get("quant_method") or "an unnamed method"
        fix = "save it once with transformers: model.dequantize().save_pretrained(FOLDER)"
        raise RetrievoError(path, f"quantized weights ({method})", "weights in floating point", fix)


# Adapters


def _check_adapter(folder: Path, name: str) -> None:
    """Raises RetrievoError unless there is exactly one adapter, in safetensors, and peft is installed."""
    others = adapters_in_subfolders(folder)
    if others:
        fix = f"merge the one you mean into the weights, or remove {', '.join(others)}"
        raise RetrievoError(name, f"several adapters (its own, {', '.join(others)})", "one", fix)
    if importlib.util.find_spec("peft") is None:
        fix = "pip install 'retrievo[lora]'"
        raise RetrievoError(name, f"an adapter ({ADAPTER_FILE}), which needs the peft package", None, fix)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise RetrievoError(name, f"an adapter ({ADAPTER_FILE}) without weights in safetensors", ADAPTER_WEIGHTS)


def adapters_in_subfolders(folder: Path) -> list[str]:
    """The names of subfolders with an adapter, which neither transformers nor peft applies."""
    return sorted(path.parent.name for path in folder.glob(f"*/{ADAPTER_FILE}"))


def _merge_adapter(folder: Path, model: PreTrainedModel) -> set[str]:
    """Merges the adapter into the weights; returns the names of weights that it replaces entirely, such as a head."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
        given = set(file.keys())
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what does not meet is an error below
            adapted = PeftModel.from_pretrained(model, str(folder), local_files_only=True)
            expected = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
            stray = sorted((given - expected - adapted.state_dict().keys()) | (expected - given))
            merged = adapted.merge_and_unload(safe_merge=True)
    except Exception as error:  # many kinds: each method of peft has its own way to say that it can't
        found = f"an adapter that peft can't merge into this model ({error})"
        raise RetrievoError(folder / ADAPTER_FILE, found, "one of weights, such as LoRA, of this model") from error
    if stray:
        found = f"{len(stray)} weights of the adapter and of the model do not meet ({stray[0]}, ...)"
        raise RetrievoError(folder / ADAPTER_WEIGHTS, found, f"an adapter of a {type(model).__name__}")
    if merged is not model:
        raise RetrievoError(folder / ADAPTER_FILE, "an adapter that puts another model in place of this one")
    with contextlib.suppress(AttributeError):
        del model.peft_config
    model.requires_grad_(True)
    return {key.removeprefix(_PREFIX) for key in given}


def read_json(path: Path) -> Any:
    """Parses a JSON file.

    Raises: RetrievoError where it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RetrievoError(path, f"not readable ({error})", "a JSON file") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers' progress bars and reports: dropped heads are intended, and missing weights are errors."""
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
    """Makes newly initialized weights reproducible, without changing the caller's random state."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield

"""Dense retrieval from the command line and as a library: pre-train, train, encode, index, search, mine, evaluate.

Everything below is loaded when it is first used (PEP 562), so that `import retrievo` costs nothing; docs/library.md
shows it at work.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrievo.commands.build_index import build_index as build_index
    from retrievo.commands.cache import CacheConfig as CacheConfig
    from retrievo.commands.cache import cache as cache
    from retrievo.commands.demo import DemoConfig as DemoConfig
    from retrievo.commands.demo import demo as demo
    from retrievo.commands.encode import EncodeConfig as EncodeConfig
    from retrievo.commands.encode import encode as encode
    from retrievo.commands.evaluate import EvaluateConfig as EvaluateConfig
    from retrievo.commands.evaluate_given import evaluate as evaluate
    from retrievo.commands.evaluate_suite import SweepConfig as SweepConfig
    from retrievo.commands.export import ExportConfig as ExportConfig
    from retrievo.commands.export import export as export
    from retrievo.commands.import_ import ImportConfig as ImportConfig
    from retrievo.commands.import_ import import_dataset as import_dataset
    from retrievo.commands.index import IndexConfig as IndexConfig
    from retrievo.commands.index import index as index
    from retrievo.commands.mine_negatives import MineConfig as MineConfig
    from retrievo.commands.mine_negatives import mine_negatives as mine_negatives
    from retrievo.commands.pretrain import PretrainConfig as PretrainConfig
    from retrievo.commands.pretrain import pretrain as pretrain
    from retrievo.commands.pseudo_label import PseudoLabelConfig as PseudoLabelConfig
    from retrievo.commands.pseudo_label import pseudo_label as pseudo_label
    from retrievo.commands.recipe import run_recipe as run_recipe
    from retrievo.commands.recipe_config import RunConfig as RunConfig
    from retrievo.commands.rerank import RerankConfig as RerankConfig
    from retrievo.commands.rerank import rerank as rerank
    from retrievo.commands.search.config import SearchConfig as SearchConfig
    from retrievo.commands.search.run import search as search
    from retrievo.commands.train import train as train
    from retrievo.commands.train_config import TrainConfig as TrainConfig
    from retrievo.data.corpus import Corpus as Corpus
    from retrievo.data.given import read_corpus as read_corpus
    from retrievo.data.given import read_qrels as read_qrels
    from retrievo.data.given import read_queries as read_queries
    from retrievo.data.given import read_run as read_run
    from retrievo.models.cross_encoder import CrossEncoder as CrossEncoder
    from retrievo.models.encoder import Encoder as Encoder
    from retrievo.retrieval.embeddings import Embeddings as Embeddings
    from retrievo.retrieval.fuse_given import fuse as fuse
    from retrievo.retrieval.opened import Index as Index
    from retrievo.retrieval.opened import open_index as open_index
    from retrievo.support.errors import RetrievoError as RetrievoError

__version__ = "0.1.0"

# module -> what it has for users
_HOMES = {
    "models.encoder": ("Encoder",),
    "models.cross_encoder": ("CrossEncoder",),
    "support.errors": ("RetrievoError",),
    "data.corpus": ("Corpus",),
    "data.given": ("read_corpus", "read_queries", "read_qrels", "read_run"),
    "retrieval.embeddings": ("Embeddings",),
    "retrieval.opened": ("open_index", "Index"),
    "retrieval.fuse_given": ("fuse",),
    "commands.build_index": ("build_index",),
    "commands.evaluate_given": ("evaluate",),
    "commands.evaluate": ("EvaluateConfig",),
    "commands.evaluate_suite": ("SweepConfig",),
    "commands.search.config": ("SearchConfig",),
    "commands.search.run": ("search",),
    "commands.import_": ("import_dataset", "ImportConfig"),
    "commands.pretrain": ("pretrain", "PretrainConfig"),
    "commands.train": ("train",),
    "commands.train_config": ("TrainConfig",),
    "commands.mine_negatives": ("mine_negatives", "MineConfig"),
    "commands.encode": ("encode", "EncodeConfig"),
    "commands.index": ("index", "IndexConfig"),
    "commands.export": ("export", "ExportConfig"),
    "commands.rerank": ("rerank", "RerankConfig"),
    "commands.pseudo_label": ("pseudo_label", "PseudoLabelConfig"),
    "commands.recipe": ("run_recipe",),
    "commands.recipe_config": ("RunConfig",),
    "commands.cache": ("cache", "CacheConfig"),
    "commands.demo": ("demo", "DemoConfig"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    """A public name, from the module that has it."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'retrievo' has no attribute '{name}'")
    found = getattr(importlib.import_module(f"retrievo.{_HOME_OF[name]}"), name)
    globals()[name] = found  # the next time Python finds it by itself
    return found


def __dir__() -> list[str]:
    """Public names, loaded or not."""
    return [*__all__, "__version__"]

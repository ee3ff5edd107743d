"""Tiny models and documents of pre-training; as a script, what each process of objectives/test_masked_lm.py does."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    DistilBertConfig,
    ModernBertConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    XLMRobertaConfig,
)

from retrievo.data.corpus import Corpus
from retrievo.data.sampling import random_keys
from retrievo.distributed.collectives import process_group, rank
from retrievo.models.condenser import MaskedEncoder
from retrievo.models.encoder import Encoder
from retrievo.models.encoder_spec import EncoderSpec
from retrievo.training.augment.special_tokens import Document
from retrievo.training.batch import Batch
from retrievo.training.engine.gradient_cache import gradient_step
from retrievo.training.feeds.pretrain import PretrainFeed
from retrievo.training.objectives.masked_lm import CoCondenser, Condenser, MaskedLanguageModel
from retrievo.training.objectives.objective import Objective
from retrievo.training.objectives.table import OBJECTIVES, objective_class

SYLLABLES = [consonant + vowel for consonant in "bdfgkm" for vowel in "aeiou"]
SIZE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
CLASSES = {"mlm": MaskedLanguageModel, "condenser": Condenser, "cocondenser": CoCondenser}
VIEWS: dict[str, dict[str, Any]] = {  # name here -> options of its objective
    "simclr": {},
    "nt-xent": {"symmetric": True},
    "ict": {},
    "contriever": {"queue_size": 7, "momentum": 0.9},
}


@functools.cache
def syllables() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer whose words are strings of syllables."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, ".", *SYLLABLES, *(f"##{syllable}" for syllable in SYLLABLES)]
    made = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


@functools.cache
def byte_syllables() -> PreTrainedTokenizerFast:
    """The same for a byte-level BPE as RoBERTa's."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(syllable[0], syllable[1]) for syllable in SYLLABLES]
    merges = [*pairs, *(("Ġ", syllable) for syllable in SYLLABLES)]
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters, *map("".join, merges)]
    made = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, merges))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    names = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **{f"{name}_token": sign for name, sign in names.items()})


@functools.cache
def sentence_pieces() -> PreTrainedTokenizerFast:
    """The same for a SentencePiece unigram model as XLM-R's."""
    pieces = [*SYLLABLES, *(f"▁{syllable}" for syllable in SYLLABLES), *"▁.bdfgkmaeiou"]
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    vocabulary = [(piece, 0.0) for piece in special] + [(piece, -float(len(pieces[0]))) for piece in pieces]
    made = Tokenizer(models.Unigram(vocabulary, unk_id=3))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    names = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **{f"{name}_token": sign for name, sign in names.items()})


class Family(NamedTuple):
    """A kind of backbone: the tokenizer and the configuration of a tiny one."""

    tokenizer: Callable[[], PreTrainedTokenizerFast]
    config: type
    options: dict[str, Any]


_DISTIL = {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 64}
_LOCAL = {"global_attn_every_n_layers": 2, "local_attention": 8, "max_position_embeddings": 64, "pad_token_id": 1}
FAMILIES = {  # MiniLM is a BERT of other sizes
    "bert": Family(syllables, BertConfig, SIZE | {"max_position_embeddings": 64}),
    "roberta": Family(byte_syllables, RobertaConfig, SIZE | {"max_position_embeddings": 66}),
    "xlm-roberta": Family(sentence_pieces, XLMRobertaConfig, SIZE | {"max_position_embeddings": 66}),
    "distilbert": Family(syllables, DistilBertConfig, _DISTIL),
    "modernbert": Family(byte_syllables, ModernBertConfig, SIZE | _LOCAL),
}


def model(family: str = "bert", dropout: float = 0.0) -> MaskedEncoder:
    """A masked language model of 3 layers x 16."""
    torch.manual_seed(0)
    tokenizer, config, options = FAMILIES[family].tokenizer(), FAMILIES[family].config, FAMILIES[family].options
    names = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "mlp_dropout")
    rates = {name: dropout for name in names if hasattr(config(), name)} | {"initializer_range": 0.3}
    made = AutoModelForMaskedLM.from_config(config(vocab_size=len(tokenizer), **options, **rates))
    return MaskedEncoder(made, tokenizer, EncoderSpec(query_max_length=64, document_max_length=64))


def objective(name: str, family: str = "bert", dropout: float = 0.0, **options: Any) -> Any:
    """An objective on its own tiny model, in training mode."""
    config = OBJECTIVES[name].config(**{"max_length": 14, "mask_probability": 0.3, **options})
    encoder = model(family, dropout)
    if name == "cocondenser":
        Condenser(config, encoder)  # puts a head there
    return CLASSES[name](config, encoder).train()


def contrast(name: str, dropout: float = 0.0, **options: Any) -> Any:
    """An objective of `VIEWS` on its own tiny encoder, in training mode."""
    objective = {"nt-xent": "simclr"}.get(name, name)
    config = OBJECTIVES[objective].config(**{"window": 40, "temperature": 4.0, **VIEWS[name], **options})
    whole = model(dropout=dropout)
    spec = dataclasses.replace(whole.spec, pooling="mean")
    return objective_class(objective)(config, Encoder(whole.backbone, whole.tokenizer, spec)).train()


def texts(count: int, seed: int = 0, shortest: int = 8) -> list[str]:
    """Documents of `shortest` to 30 words of one to three syllables, and a full stop here and there."""
    random = np.random.default_rng(seed)

    def word() -> str:
        return "".join(random.choice(SYLLABLES, random.integers(1, 4))) + (" ." if random.random() < 0.1 else "")

    return [" ".join(word() for _ in range(random.integers(shortest, 31))) for _ in range(count)]


def write_corpus(path: Path, documents: list[str]) -> Path:
    ids = [f"d{number}" for number in range(len(documents))]
    pq.write_table(pa.table({"id": ids, "text": documents}), path)
    return path


BATCH_SIZE, DOCUMENTS = 5, 11  # batches of 5, 5 and 1 documents: they do not divide, and leave a rank without any


def gradients_of_an_epoch(folder: Path) -> dict[str, Tensor]:
    """Gradient, loss and counts of each step of an epoch, for each objective."""
    found = {}
    corpus = Corpus(folder / "corpus.parquet")
    for name in (*CLASSES, *VIEWS):
        trained = objective(name) if name in CLASSES else contrast(name)
        feed = PretrainFeed([corpus], trained.encoder, trained.collator(), batch_size=BATCH_SIZE, seed=3)
        for step in range(feed.batches_per_epoch):
            stats = gradient_step(trained, feed.batch(step), step=step, seed=3, chunk_tokens=40)
            found |= {f"{name}/{step}/{key}": value for key, value in stats.items() if key != "padded_tokens"}
            gradients = {key: p.grad for key, p in trained.named_parameters() if p.grad is not None}
            found |= {f"{name}/{step}/gradient of {key}": value for key, value in gradients.items()}
            trained.after_step()
            found |= {f"{name}/{step}/{key}": value.clone() for key, value in trained.named_buffers(recurse=False)}
    return found


def documents(trained: Objective, count: int, seed: int = 0) -> list[Document]:
    rows = trained.encoder.tokenizer(texts(count, seed, shortest=16), add_special_tokens=False)["input_ids"]
    keys = random_keys(seed, np.arange(count))
    return [Document(np.array(row, np.uint16), key) for row, key in zip(rows, keys, strict=True)]


def batch(trained: Any, count: int = 5, seed: int = 0) -> Batch:
    made: Batch = trained.collator()(documents(trained, count, seed))
    return made


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with process_group("cpu"):
        torch.save(gradients_of_an_epoch(folder), folder / f"found-{rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Tiny models made on the spot: random weights, vocabularies of a few hundred pieces, nothing fetched."""

from __future__ import annotations

import functools
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from retrievo.models.compute import ComputeOptions
from retrievo.models.encoder import Encoder
from retrievo.models.vectors import encode_tokens

SENTENCES = [
    "Dense retrieval maps queries and documents to vectors.",
    "The quick brown fox jumps over the lazy dog, again and again and again.",
    "A short one",
    "Neural networks learn representations of text; inverted indexes count words in it.",
    "Zürich is a city in Switzerland",
    "0123456789 retrieval evaluation with graded relevance judgments and many unjudged documents per query",
]
SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


@functools.cache
def word_pieces():
    """A lower-casing WordPiece tokenizer as BERT's, made once: its training breaks ties anew each time."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizer

    trained = BertWordPieceTokenizer()
    trained.train_from_iterator(SENTENCES, vocab_size=300, min_frequency=1, show_progress=False)
    return BertTokenizer(vocab=trained.get_vocab(), model_max_length=64)


@functools.cache
def byte_pieces():
    """A byte-level BPE tokenizer as RoBERTa's."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaTokenizer

    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(SENTENCES, vocab_size=350, min_frequency=1, show_progress=False, special_tokens=special)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return RobertaTokenizer(vocab=model["vocab"], merges=merges, model_max_length=64)


def bert(seed: int = 0, masked: bool = False):
    from transformers import BertConfig, BertForMaskedLM, BertModel

    torch.manual_seed(seed)
    config = BertConfig(vocab_size=len(word_pieces()), max_position_embeddings=64, initializer_range=0.3, **SIZE)
    return (BertForMaskedLM if masked else BertModel)(config).eval()


def roberta(seed: int = 0):
    from transformers import RobertaConfig, RobertaModel

    torch.manual_seed(seed)
    config = RobertaConfig(vocab_size=len(byte_pieces()), max_position_embeddings=66, initializer_range=0.3, **SIZE)
    return RobertaModel(config).eval()


def written(folder: Path, model, tokenizer) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """The texts that the vocabularies come from."""
    return SENTENCES


@pytest.fixture(scope="session")
def tokenizers():
    """Tokenizers of transformers by kind; a test that changes one makes its own."""
    return {"word pieces": word_pieces(), "byte pieces": byte_pieces()}


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets how many threads torch has, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory) -> Path:
    """A plain Hugging Face folder: BERT with its pooler, 64 positions."""
    return written(tmp_path_factory.mktemp("bert"), bert(), word_pieces())


@pytest.fixture(scope="session")
def masked_bert_folder(tmp_path_factory) -> Path:
    """The checkpoint of a masked language model: a head, no pooler."""
    return written(tmp_path_factory.mktemp("masked-bert"), bert(masked=True), word_pieces())


@pytest.fixture(scope="session")
def roberta_folder(tmp_path_factory) -> Path:
    """A plain RoBERTa folder: byte-level BPE, positions counted from 2, so that 66 hold 64 tokens."""
    return written(tmp_path_factory.mktemp("roberta"), roberta(), byte_pieces())


@pytest.fixture(params=["bert", "roberta"])
def plain_folder(request) -> Path:
    """A plain Hugging Face folder of either kind."""
    return request.getfixturevalue(f"{request.param}_folder")


@pytest.fixture
def no_network(monkeypatch):
    """Any attempt to reach the network fails the test."""

    def refuse(*args, **kwargs):
        raise AssertionError("reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def notices():
    """What a load tells the user, as a list that fills."""
    return []


@pytest.fixture
def load(notices):
    """Opens an encoder for inference and keeps what it tells in `notices`."""

    def run(folder, **overrides):
        return Encoder.load(folder, notify=notices.append, **overrides).eval()

    return run


def vectors_of(encoder: Encoder, role: str, texts: list[str]) -> np.ndarray:
    tokenized = encoder.tokenization(role).tokenize(texts)
    return encode_tokens(encoder, role, tokenized.tokens, tokenized.offsets, ComputeOptions("float32"))


@pytest.fixture(name="vectors_of")
def vectors_of_texts():
    """Texts of a role to vectors."""
    return vectors_of


@pytest.fixture
def texts(sentences) -> list[str]:
    """Short texts, and one that is longer than any model here reads."""
    return [*sentences, "retrieval of documents by vectors and again " * 12]


@pytest.fixture
def open_theirs():
    """Opens a folder with sentence-transformers."""
    library = pytest.importorskip("sentence_transformers", minversion="6")
    return lambda folder: library.SentenceTransformer(str(folder), device="cpu", local_files_only=True)


@pytest.fixture
def assert_same_vectors(open_theirs):
    """A folder opened with sentence-transformers gives the vectors of an encoder in both roles."""

    def check(encoder, folder, texts):
        model = open_theirs(folder)
        np.testing.assert_allclose(model.encode_query(texts), vectors_of(encoder, "query", texts), atol=1e-5)
        np.testing.assert_allclose(model.encode_document(texts), vectors_of(encoder, "document", texts), atol=1e-5)
        return model

    return check

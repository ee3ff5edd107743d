"""Fine-tuning: what is a candidate of whom, what the collator makes of texts, and the real encoder in the engine."""

from __future__ import annotations

import dataclasses
import importlib
import pickle
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from retrievo.models.encoder import Encoder
from retrievo.models.encoder_spec import EncoderSpec
from retrievo.support.errors import UsageError
from retrievo.training.batch import Batch, Relevant, Rows
from retrievo.training.engine.gradient_cache import ALL_GRAPHS, gradient_step
from retrievo.training.objectives.finetune import Example, Finetune, FinetuneCollator
from retrievo.training.objectives.table import OBJECTIVES, FinetuneConfig

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "cats", "dogs", "purr", "bark", "often", "alone"]


class Table(nn.Module):
    """One vector for each token id: an encoder whose scores can be worked out by hand."""

    pad_id, dim = 0, 4

    def __init__(self, similarity: str = "dot"):
        super().__init__()
        self.spec = SimpleNamespace(similarity=similarity, normalize=False)
        torch.manual_seed(0)
        self.vectors = nn.Embedding(20, 4)

    def encode(self, role: str, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.vectors(input_ids[:, 0])


def objective(similarity: str = "dot", **options: Any) -> Finetune:
    return Finetune(FinetuneConfig(**options), Table(similarity))


def single(tokens: list[int]) -> Rows:
    return Rows(torch.tensor(tokens), torch.arange(len(tokens) + 1))


def batch() -> Batch:
    """Two queries: documents 10, 11, 12 and 13, 14; document 14 reads as document 10."""
    documents = torch.tensor([10, 11, 12, 13, 14])
    return Batch(
        rows={"query": single([1, 2]), "document": single(documents.tolist())},
        counts={"pairs": 2},
        ids={"document": documents},
        hashes={"document": torch.tensor([100, 101, 102, 103, 100])},
        groups=torch.tensor([3, 2]),
        relevant=Relevant(torch.tensor([10, 13, 11]), torch.tensor([100, 103, 101]), torch.tensor([0, 1, 3])),
    )


CANDIDATES = [[0, 1, 2, 3], [0, 2, 3, 4]]  # 14 is masked for query 0 (text of 10), 11 for query 1 (relevant)
POSITIVES = [0, 3]


def by_hand(queries: Tensor, documents: Tensor, temperature: float) -> Tensor:
    losses = []
    for query, candidates, positive in zip(queries, CANDIDATES, POSITIVES, strict=True):
        scores = documents[candidates] @ query / temperature
        losses.append(functional.cross_entropy(scores, torch.tensor(candidates.index(positive))))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_every_document_of_the_batch_competes_save_relevant_ones_and_their_copies(similarity: str) -> None:
    trained = objective(similarity, temperature=0.2)
    vectors = trained.encoder.vectors.weight
    queries, documents = vectors[1:3], vectors[10:15]
    if similarity == "cosine":
        queries, documents = functional.normalize(queries, dim=-1), functional.normalize(documents, dim=-1)
    stats = gradient_step(trained, batch(), step=0, seed=0, chunk_tokens=2)
    expected = by_hand(queries, documents, 0.2)
    expected_gradient = torch.autograd.grad(expected, vectors)[0]
    assert stats["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(vectors.grad, expected_gradient)


def test_a_duplicated_positive_gets_no_negative_gradient() -> None:
    vectors = {"query": torch.randn(2, 4), "document": torch.randn(5, 4, requires_grad=True)}
    vectors["query"][1] = 0  # only query 0 pulls and pushes
    objective().contrast(vectors, batch())[0].backward()
    gradient = vectors["document"].grad
    assert gradient is not None
    assert torch.equal(gradient[4], torch.zeros(4))  # reads as the positive of query 0
    assert gradient[[0, 1, 2, 3]].abs().sum(1).min() > 0


def test_losses_are_weighted_and_logged_unweighted() -> None:
    vectors = {"query": torch.randn(2, 4), "document": torch.randn(5, 4)}
    once, stats = objective().contrast(vectors, batch())
    thrice, logged = objective(loss_weight=(3.0,)).contrast(vectors, batch())
    assert thrice.item() == pytest.approx(3 * once.item())
    assert logged["infonce"].item() == pytest.approx(once.item()) == stats["infonce"].item()


def test_a_batch_teacher_keeps_all_dimensions_where_the_model_is_cut() -> None:
    torch.manual_seed(1)
    vectors = {"query": torch.randn(2, 4), "document": torch.randn(5, 4)}
    taught = {"query": torch.randn(2, 3), "document": torch.randn(5, 3)}
    trained = objective(loss=("batch-margin-mse",), matryoshka=(4, 2))
    found, _ = trained.contrast(vectors, dataclasses.replace(batch(), teacher_vectors=taught))
    expected = []
    for dim in (4, 2):
        apart = vectors["query"][:, :dim] @ vectors["document"][:, :dim].T - taught["query"] @ taught["document"].T
        for query, positive in enumerate(POSITIVES):
            others = [document for document in CANDIDATES[query] if document != positive]
            expected.append((apart[query, positive] - apart[query, others]).square().mean())
    assert found.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)


def test_what_is_cut_is_compared_as_the_encoder_gives_it() -> None:
    torch.manual_seed(1)
    vectors = {"query": torch.randn(2, 4), "document": torch.randn(5, 4)}
    trained = objective(matryoshka=(2,), temperature=0.05)
    trained.encoder.spec.normalize = True
    cut = Finetune(FinetuneConfig(matryoshka=(2,), temperature=0.05), trained.encoder)
    given = {name: functional.normalize(side[:, :2], dim=-1) for name, side in vectors.items()}
    whole = {name: functional.normalize(side, dim=-1) for name, side in vectors.items()}
    expected = [objective(temperature=0.05).contrast(side, batch())[0].item() for side in (given, whole)]
    assert cut.contrast(vectors, batch())[0].item() == pytest.approx(sum(expected) / 2, rel=1e-5)


def test_groups_are_known_without_a_teacher_and_compete_by_themselves() -> None:
    vectors = {"query": torch.randn(2, 4), "document": torch.randn(5, 4)}
    groups = [[0, 1, 2], [3, 4]]
    found, stats = objective(loss=("listwise", "ranknet"), loss_weight=(1.0, 0.0)).contrast(vectors, batch())
    scores = vectors["query"] @ vectors["document"].T
    own = [scores[query, group] for query, group in enumerate(groups)]
    expected = torch.stack([functional.cross_entropy(row, torch.tensor(0)) for row in own]).mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    ranknet = torch.stack([functional.softplus(row[1:] - row[0]).mean() for row in own]).mean()
    assert stats["ranknet"].item() == pytest.approx(ranknet.item(), rel=1e-5)


def test_accuracy_is_the_share_of_queries_whose_positive_wins() -> None:
    documents = torch.eye(5)
    vectors = {"query": torch.stack([documents[0], documents[0]]), "document": documents}
    _, stats = objective().contrast(vectors, batch())
    assert stats["accuracy"].item() == 0.5


def test_cosines_are_sharpened_where_no_temperature_is_given() -> None:
    assert (objective("cosine").temperature, objective("dot").temperature) == (0.05, 1.0)
    assert objective("cosine", temperature=1.0).temperature == 1.0


def test_a_learned_temperature_starts_where_it_was_set_and_gets_a_gradient() -> None:
    fixed, learned = objective(temperature=0.3), objective(temperature=0.3, learn_temperature=True)
    losses = [gradient_step(of, batch(), step=0, seed=0, chunk_tokens=9)["loss"].item() for of in (fixed, learned)]
    assert losses[0] == pytest.approx(losses[1])
    assert learned.log_temperature.grad.abs() > 0
    assert {name for name, _ in fixed.named_parameters()} == {"encoder.vectors.weight"}


def real_encoder(tied: bool = True, dropout: float = 0.0) -> Encoder:
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = BertConfig(vocab_size=len(WORDS), max_position_embeddings=16, **sizes, **rates)
    spec = EncoderSpec(query_max_length=8, document_max_length=8, tied=tied)
    return Encoder(BertModel(config), PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names), spec)


def tokens(text: str) -> np.ndarray:
    return np.asarray([1, *(WORDS.index(word) for word in text.split()), 2], dtype=np.int32)


def example(query: str, documents: list[str], ids: list[int]) -> Example:
    known = np.asarray(ids)
    hashes = known.astype(np.uint64) + np.uint64(2**63)
    return Example(tokens(query), [tokens(text) for text in documents], known, hashes, known[:1], hashes[:1])


EXAMPLES = [
    example("cats purr", ["cats purr often", "dogs bark"], [4, 5]),
    example("dogs", ["dogs bark alone often"], [6]),
    example("cats", ["cats", "dogs", "bark bark"], [7, 8, 9]),
]


def test_a_collator_crosses_process_borders_without_the_model_and_pads_nothing() -> None:
    collator = Finetune(FinetuneConfig(), real_encoder()).collator()
    assert isinstance(collator, FinetuneCollator)
    packed = pickle.dumps(collator)
    assert b"BertModel" not in packed
    made = pickle.loads(packed)(EXAMPLES)
    cats, dogs, purr = (WORDS.index(word) for word in ("cats", "dogs", "purr"))
    assert made.rows["query"].tokens.tolist() == [1, cats, purr, 2, 1, dogs, 2, 1, cats, 2]
    assert made.rows["document"].lengths.tolist() == [5, 4, 6, 3, 3, 4]
    assert made.groups.tolist() == [2, 1, 3]
    assert made.counts == {"pairs": 3}
    assert made.ids["document"].tolist() == [4, 5, 6, 7, 8, 9]
    assert made.relevant.ids.tolist() == [4, 6, 7]
    assert made.relevant.offsets.tolist() == [0, 1, 2, 3]


def test_hashes_beyond_the_largest_signed_number_stay_distinct_and_equal_where_they_were() -> None:
    made = FinetuneCollator(pad_id=0)(EXAMPLES)
    hashes = made.hashes["document"].tolist()
    assert len(set(hashes)) == 6
    assert made.relevant.hashes.tolist() == [hashes[0], hashes[2], hashes[3]]


def test_a_rank_without_examples_has_an_empty_batch() -> None:
    made = Finetune(FinetuneConfig(), real_encoder()).collator()([])
    assert (made.rows["query"].size, made.rows["document"].size, made.counts["pairs"]) == (0, 0, 0)


@pytest.mark.parametrize("tied", [True, False])
def test_with_a_real_encoder_and_dropout_cached_equals_uncached(tied: bool) -> None:
    trained = Finetune(FinetuneConfig(), real_encoder(tied, dropout=0.2))
    made = trained.collator()(EXAMPLES)
    found = []
    for keep_graphs in (0, ALL_GRAPHS):
        stats = gradient_step(trained, made, step=0, seed=0, chunk_tokens=8, keep_graphs=keep_graphs)
        found.append((stats["loss"], {name: p.grad for name, p in trained.named_parameters() if p.grad is not None}))
    assert torch.equal(found[0][0], found[1][0])
    assert not any("pooler" in name for name in found[0][1])
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(gradient, found[1][1][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": ("infonec",)}, "--loss: found 'infonec'; did you mean 'infonce'?"),
        ({"loss_weight": (1.0, 2.0)}, "--loss-weight: found 2 weights for 1 losses; expected one for each --loss"),
        ({"temperature": 0.0}, "--temperature: found 0.0; expected more than 0"),
    ],
)
def test_wrong_options_name_the_flag(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        FinetuneConfig(**options)
    assert str(error.value) == message


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_of_the_table_is_there_with_its_options(name: str) -> None:
    module, cls = OBJECTIVES[name].target.split(":")
    found = getattr(importlib.import_module(module), cls)
    assert found.Config is OBJECTIVES[name].config


def test_options_and_choice_tables_import_the_standard_library_only() -> None:
    code = (
        "import sys, retrievo.training.objectives.table;"
        "import retrievo.training.engine.config, retrievo.training.engine.optimizers;"
        "sys.exit(' '.join({'torch', 'numpy', 'transformers', 'pyarrow'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

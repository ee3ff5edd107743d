"""Pre-training models on disk and in memory: the Condenser head, the masked-language-model head, the backbone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    BertConfig,
    BertForPreTraining,
    ElectraConfig,
    ElectraModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from retrievo.models.condenser import BACKBONES, HEAD_FILE, CondenserHead, MaskedEncoder
from retrievo.models.encoder import Encoder
from retrievo.support.errors import RetrievoError

SIZE = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}


@pytest.fixture(scope="session")
def masked_roberta_folder(tmp_path_factory, tokenizers) -> Path:
    """The checkpoint of a masked RoBERTa with 4 layers."""
    torch.manual_seed(0)
    tokenizer = tokenizers["byte pieces"]
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=66, initializer_range=0.3, **SIZE)
    folder = tmp_path_factory.mktemp("masked-roberta")
    RobertaForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(params=["bert", "roberta"])
def masked_folder(request) -> Path:
    """A masked language model of either family."""
    return request.getfixturevalue(f"masked_{request.param}_folder")


@pytest.fixture
def load_masked(notices):
    """Opens a model for pre-training and keeps what it tells in `notices`."""

    def run(folder, **overrides):
        return MaskedEncoder.load(folder, notify=notices.append, **overrides).eval()

    return run


def random_head(encoder: MaskedEncoder, layers: int = 2, early_layer: int | None = None) -> CondenserHead:
    head = CondenserHead(encoder.backbone, layers, early_layer)
    torch.manual_seed(7)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return head.eval()


def parameters(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in module.named_parameters()}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


IDS = torch.tensor([[5, 9, 11, 7, 6], [5, 8, 6, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def test_backbone_and_both_heads_come_back_from_disk(load_masked, masked_folder, tmp_path):
    before = load_masked(masked_folder)
    before.condenser = random_head(before, layers=3, early_layer=0)
    before.save(tmp_path / "ours")
    after = load_masked(tmp_path / "ours")
    assert_equal(parameters(after), parameters(before))
    assert after.condenser.early_layer == 0
    assert len(after.condenser.layers) == 3
    assert after.spec == before.spec


def test_the_folder_opens_in_transformers_as_backbone_and_as_masked_language_model(
    load_masked, masked_folder, tmp_path
):
    ours = load_masked(masked_folder)
    ours.condenser = random_head(ours)
    ours.save(tmp_path / "ours")
    masked, loading = AutoModelForMaskedLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(loading[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        hidden = ours.backbone(input_ids=IDS, attention_mask=MASK).last_hidden_state
        logits = masked.eval()(input_ids=IDS, attention_mask=MASK).logits
        plain = AutoModel.from_pretrained(tmp_path / "ours").eval()(input_ids=IDS, attention_mask=MASK)
        torch.testing.assert_close(logits, ours.mlm_head(hidden))
    torch.testing.assert_close(plain.last_hidden_state, hidden)


def test_a_plain_encoder_and_sentence_transformers_read_the_folder_without_its_heads(
    load, load_masked, masked_folder, tmp_path, texts, assert_same_vectors
):
    ours = load_masked(masked_folder)
    ours.condenser = random_head(ours)
    ours.save(tmp_path / "ours")
    plain = load(tmp_path / "ours")
    assert type(plain) is Encoder
    assert not any("cls." in name or "lm_head" in name or "condenser" in name for name in parameters(plain))
    assert_equal(parameters(plain.backbone), parameters(ours.backbone))
    assert_same_vectors(ours, tmp_path / "ours", texts)


def test_the_same_weights_give_the_same_bytes(load_masked, masked_bert_folder, tmp_path):
    ours = load_masked(masked_bert_folder)
    ours.condenser = random_head(ours)
    for name in ("one", "two"):
        ours.save(tmp_path / name)
    files = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()}
    assert Path(HEAD_FILE) in files
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)


def test_an_encoder_without_head_leaves_none_behind(load_masked, masked_bert_folder, tmp_path):
    ours = load_masked(masked_bert_folder)
    ours.condenser = random_head(ours)
    ours.save(tmp_path / "ours")
    ours.condenser = None
    ours.save(tmp_path / "ours")
    assert not (tmp_path / "ours" / HEAD_FILE).exists()
    assert load_masked(tmp_path / "ours").condenser is None


def test_a_missing_masked_language_model_head_starts_fresh_and_says_so(load_masked, notices, bert_folder):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first, second = load_masked(bert_folder), load_masked(bert_folder)
    assert_equal(parameters(first), parameters(second))
    assert torch.equal(torch.rand(2), expected)  # the caller's random numbers
    assert notices.count(f"{bert_folder}: has no masked-language-model head; it starts from a fresh one") == 2
    assert first.mlm_head.predictions.decoder.weight is first.backbone.embeddings.word_embeddings.weight


def test_a_whole_masked_language_model_is_opened_without_a_word_about_heads(load_masked, notices, masked_folder):
    load_masked(masked_folder)
    assert not [notice for notice in notices if "head" in notice]


def test_a_checkpoint_with_more_heads_than_this_one_loses_the_others(load_masked, notices, tokenizers, tmp_path):
    """As the published BERT, which predicts the next sentence too."""
    tokenizer = tokenizers["word pieces"]
    theirs = BertForPreTraining(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **SIZE))
    theirs.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ours = load_masked(tmp_path)
    assert_equal(parameters(ours.mlm_head.predictions), parameters(theirs.cls.predictions))
    assert not [notice for notice in notices if "head" in notice]


@pytest.mark.parametrize("kind", list(BACKBONES))
def test_a_head_with_the_weights_of_the_last_layers_is_these_layers(kind):
    """In every family of the table: its own layers, their positions and masks, and the norm that follows them."""
    torch.manual_seed(0)
    sizes = {"dim": 32, "n_layers": 4, "n_heads": 4, "hidden_dim": 64} if kind == "distilbert" else SIZE
    sizes = sizes | ({"local_attention": 4} if kind == "modernbert" else {})  # every third layer sees all tokens
    model = AutoModelForMaskedLM.from_config(
        AutoConfig.for_model(kind, vocab_size=90, max_position_embeddings=66, pad_token_id=1, **sizes)
    ).eval()
    backbone = model.base_model
    ids, mask = torch.randint(5, 90, (2, 12)), torch.ones(2, 12, dtype=torch.int64)
    mask[1, 7:] = 0
    head, stack = CondenserHead(backbone, 2).eval(), backbone.get_submodule(BACKBONES[kind].layers)
    for own, theirs in zip(head.layers, stack[-2:], strict=True):
        assert type(own) is type(theirs)
        own.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        found = backbone(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        hidden = head(found.hidden_states[2], found.hidden_states[2], mask)
        torch.testing.assert_close(hidden[mask.bool()], found.last_hidden_state[mask.bool()])


@pytest.mark.parametrize("early_layer", [0, 1, 2])
def test_the_head_sees_the_last_first_token_and_other_tokens_of_the_early_layer(
    load_masked, masked_bert_folder, early_layer
):
    encoder = load_masked(masked_bert_folder)
    head = random_head(encoder, early_layer=early_layer)
    with torch.no_grad():
        found = encoder.backbone(input_ids=IDS, attention_mask=MASK, output_hidden_states=True)
        early, late = found.hidden_states[head.early_layer], found.last_hidden_state
        expected = head(early, late, MASK)
        other_late, other_early = late.clone(), early.clone()
        other_late[:, 1:], other_early[:, 0] = 99.0, 99.0  # what it must not see
        torch.testing.assert_close(head(other_early, other_late, MASK), expected)
        late[0, 0] += 1.0
        assert (head(early, late, MASK) - expected)[0].abs().min(1).values.max() > 1e-4
        assert torch.equal(head(early, late, MASK)[1], expected[1])


def test_padding_does_not_reach_the_head(load_masked, masked_bert_folder):
    encoder = load_masked(masked_bert_folder)
    head = random_head(encoder)
    late = torch.randn(1, 5, 32)
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    with torch.no_grad():
        torch.testing.assert_close(head(late, late, mask)[:, :3], head(late[:, :3], late[:, :3], mask[:, :3]))


def test_a_fresh_head_is_drawn_as_the_backbone_was_and_the_same_every_time(load_masked, masked_bert_folder):
    backbone = load_masked(masked_bert_folder).backbone
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first, second = CondenserHead(backbone), CondenserHead(backbone)
    assert torch.equal(torch.rand(2), expected)
    assert_equal(parameters(first), parameters(second))
    assert first.early_layer == backbone.config.num_hidden_layers // 2
    weights = torch.cat([p.flatten() for name, p in first.named_parameters() if "dense.weight" in name])
    assert weights.std().item() == pytest.approx(backbone.config.initializer_range, rel=0.05)
    assert all(torch.equal(p, torch.zeros_like(p)) for name, p in first.named_parameters() if name.endswith("bias"))


def test_a_head_file_of_another_tool_needs_no_metadata(load_masked, masked_folder, tmp_path):
    encoder = load_masked(masked_folder)
    head = random_head(encoder, layers=1)
    head.save(tmp_path / "ours.safetensors")
    save_file(load_file(tmp_path / "ours.safetensors"), tmp_path / "theirs.safetensors")
    ours = CondenserHead.load(tmp_path / "ours.safetensors", encoder.backbone, early_layer=0)
    theirs = CondenserHead.load(tmp_path / "theirs.safetensors", encoder.backbone, early_layer=0)
    assert_equal(parameters(ours), parameters(head))
    assert_equal(parameters(theirs), parameters(head))
    assert (ours.early_layer, theirs.early_layer) == (head.early_layer, 0)  # what the file says comes first


def test_a_head_of_another_backbone_is_refused(load_masked, masked_bert_folder, masked_roberta_folder, tmp_path):
    shutil.copytree(masked_bert_folder, tmp_path / "mixed")
    encoder = load_masked(masked_roberta_folder)
    head = random_head(encoder)
    tensors = {name: torch.zeros(3, 3) for name in head.layers.state_dict()}
    save_file(tensors, tmp_path / "mixed" / HEAD_FILE)
    with pytest.raises(RetrievoError, match=r"a head of another backbone; expected layers of this bert"):
        load_masked(tmp_path / "mixed")


@pytest.mark.parametrize("early_layer", [-1, 3])
def test_a_layer_that_the_backbone_does_not_have_is_refused(load_masked, masked_bert_folder, early_layer):
    backbone = load_masked(masked_bert_folder).backbone
    message = f"--early-layer: found {early_layer}; expected 0 to 2 for this backbone"
    with pytest.raises(RetrievoError, match=message):
        CondenserHead(backbone, early_layer=early_layer)


def test_other_types_of_backbone_are_refused(load_masked, tokenizers, tmp_path):
    tokenizer = tokenizers["word pieces"]
    ElectraModel(ElectraConfig(vocab_size=len(tokenizer), **SIZE)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    message = "--model: a backbone of type electra; expected one of bert, roberta, xlm-roberta, camembert"
    with pytest.raises(RetrievoError, match=message):
        load_masked(tmp_path)


def test_an_encoder_for_each_role_is_refused(load, load_masked, masked_bert_folder, tmp_path):
    load(masked_bert_folder, tied=False).save(tmp_path / "untied")
    with pytest.raises(RetrievoError, match="an encoder each for queries and documents; expected one for both"):
        load_masked(tmp_path / "untied")

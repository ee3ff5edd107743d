"""Models from nothing: vocabularies that are the same each time, and folders that open as any other model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrievo.data.corpus import Corpus
from retrievo.models import scratch
from retrievo.models.scratch import SCRATCH_SIZES, SPECIAL, count_words, make_scratch, scratch_size, word_pieces
from retrievo.support.errors import RetrievoError, UsageError

TEXTS = [
    "The boundary layer over a thin wing thickens where the flow slows down.",
    "A slipstream heats the wing; heating, heated and heats are forms of one word.",
    "Zürich's laboratories measured flows, flowing and flown over 128 wings.",
]
WORDS = st.dictionaries(st.text("abc", min_size=1, max_size=9), st.integers(1, 30), min_size=1, max_size=25)


def bert():
    from transformers import BertTokenizer

    return BertTokenizer().backend_tokenizer


def pieces_one_by_one(words: dict[str, int], most: int, fewest: int) -> list[str]:
    """The vocabulary by the definition: all pairs counted anew for every piece."""
    cut = {word: [word[0], *(f"##{letter}" for letter in word[1:])] for word in words}
    letters = {piece for pieces in cut.values() for piece in pieces}
    found = [*SPECIAL, *sorted(p for p in letters if len(p) == 1), *sorted(p for p in letters if len(p) > 1)]
    while len(found) < most:
        counts = Counter(pair for word, times in words.items() for pair in list(pairwise(cut[word])) * times)
        if not counts or max(counts.values()) < fewest:
            break
        best = min(counts, key=lambda pair: (-counts[pair], found.index(pair[0]), found.index(pair[1])))
        new = best[0] + best[1].removeprefix("##")
        if new not in found:
            found.append(new)
        for word, pieces in cut.items():
            cut[word] = joined(pieces, best, new)
    return found


def joined(pieces: list[str], pair: tuple[str, str], new: str) -> list[str]:
    out, at = [], 0
    while at < len(pieces):
        match = tuple(pieces[at : at + 2]) == pair
        out.append(new if match else pieces[at])
        at += 2 if match else 1
    return out


# ------------------------------------------------------------------------------------------------------ the vocabulary


@settings(deadline=None, max_examples=150)
@given(words=WORDS, most=st.integers(12, 60), fewest=st.integers(1, 20))
def test_pieces_are_those_of_the_definition(words: dict[str, int], most: int, fewest: int) -> None:
    assert word_pieces(words, most, fewest) == pieces_one_by_one(words, most, fewest)


@settings(deadline=None)
@given(words=WORDS, data=st.data())
def test_the_order_of_words_changes_nothing(words: dict[str, int], data: st.DataObject) -> None:
    shuffled = dict(data.draw(st.permutations(list(words.items()))))
    assert word_pieces(shuffled, 60, 1) == word_pieces(words, 60, 1)


def test_every_process_makes_the_same_vocabulary_where_all_counts_tie() -> None:
    words = {f"{a}{b}{c}{a}{b}": 20 for a in "abcdef" for b in "ghij" for c in "klm"}
    probe = f"import json; from retrievo.models.scratch import word_pieces; print(json.dumps(word_pieces({words})))"
    for hash_seed in ("1", "2"):
        ran = subprocess.run(
            [sys.executable, "-c", probe], env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
        )
        assert json.loads(ran.stdout) == word_pieces(words)


def test_words_are_counted_as_bert_reads_them() -> None:
    words = count_words(["Über-heated WING, wing!", "wing\u00a0wing 1.5"], bert())
    assert words == {"uber": 1, "-": 1, "heated": 1, "wing": 4, ",": 1, "!": 1, "1": 1, ".": 1, "5": 1}


def test_words_with_rare_letters_and_endless_words_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "RAREST_LETTER", 100)
    words = count_words(["wing " * 60, "wingж", "g" * 100, "g" * 101], bert())
    assert words == {"wing": 60, "g" * 100: 1}


def test_a_large_corpus_is_read_in_part_evenly() -> None:
    texts = [f"{number:04}" for number in range(1000)]
    kept = scratch._spread(iter(texts), 600)
    assert kept == texts[::8]
    assert scratch._spread(iter(texts), 4000) == texts
    assert scratch._spread(["x" * 5000], 600) == ["x" * 5000]


def test_a_corpus_without_words_is_named() -> None:
    with pytest.raises(RetrievoError, match="holds no words"):
        count_words(["", " \n"], bert())


# ------------------------------------------------------------------------------------------------------------- folders


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scratch") / "tiny"
    make_scratch("scratch:tiny", iter(TEXTS * 10), folder, seed=3)
    return folder


def test_the_same_texts_and_seed_give_the_same_bytes(made: Path, tmp_path: Path) -> None:
    make_scratch("scratch:tiny", TEXTS * 10, tmp_path / "again", seed=3)
    names = sorted(path.name for path in made.iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(names)
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == names
    assert all((tmp_path / "again" / name).read_bytes() == (made / name).read_bytes() for name in names)


def test_another_seed_gives_other_weights_and_the_state_of_torch_stays(made: Path, tmp_path: Path) -> None:
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    make_scratch("scratch:tiny", TEXTS * 10, tmp_path, seed=4)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (tmp_path / "model.safetensors").read_bytes() != (made / "model.safetensors").read_bytes()
    assert (tmp_path / "tokenizer.json").read_bytes() == (made / "tokenizer.json").read_bytes()


def test_the_folder_is_a_masked_language_model_of_its_size(made: Path) -> None:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    model, info = AutoModelForMaskedLM.from_pretrained(made, output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained(made)
    config = model.config
    shape = config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.intermediate_size
    assert shape == (2, 128, 2, 512)
    assert config.max_position_embeddings == tokenizer.model_max_length == 512
    assert config.vocab_size == len(tokenizer)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_words_of_the_corpus_are_known_and_lower_cased(made: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(made)
    tokens = tokenizer.tokenize(" ".join(TEXTS).upper())
    assert "[UNK]" not in tokens
    assert {"wing", "the", "flow", "##ing"} <= set(tokens)
    assert tokenizer.decode(tokenizer.encode("Heated WINGS")) == "[CLS] heated wings [SEP]"
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL)) == [0, 1, 2, 3, 4]


def test_the_folder_opens_as_an_encoder(made: Path, load, vectors_of) -> None:
    vectors = vectors_of(load(made, pooling="mean"), "document", TEXTS)
    assert vectors.shape == (3, 128)
    assert (vectors[0] != vectors[1]).any()


def test_a_corpus_has_its_model_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    columns = {"id": ["1", "2", "3"], "title": ["heat", "", "heat"], "text": TEXTS}
    pq.write_table(pa.table(columns), tmp_path / "corpus.parquet")
    asked: list[tuple[str, list[str], int]] = []

    def make(name: str, texts: object, folder: Path, seed: int) -> None:
        asked.append((name, list(texts), seed))  # type: ignore[call-overload]

    monkeypatch.setattr(scratch, "make_scratch", make)
    folders = [
        scratch.scratch_folder(name, [Corpus(tmp_path / "corpus.parquet")], seed)
        for name, seed in (("scratch:tiny", 0), ("scratch:tiny", 0), ("scratch:tiny", 1), ("scratch:small", 0))
    ]
    assert [(name, seed) for name, _, seed in asked] == [("scratch:tiny", 0), ("scratch:tiny", 1), ("scratch:small", 0)]
    assert asked[0][1] == [f"heat {TEXTS[0]}", TEXTS[1], f"heat {TEXTS[2]}"]
    assert folders[0] == folders[1]
    assert len(set(folders)) == 3


# --------------------------------------------------------------------------------------------------------------- names


def test_the_sizes_are_those_of_the_names() -> None:
    sizes = {name: (size.layers, size.width, size.heads) for name, size in SCRATCH_SIZES.items()}
    assert sizes == {"scratch:tiny": (2, 128, 2), "scratch:small": (4, 256, 4), "scratch:base": (12, 768, 12)}
    assert all(scratch_size(name) is size for name, size in SCRATCH_SIZES.items())
    assert scratch_size("bert-base-uncased") is None


def test_an_unknown_size_is_told_the_closest_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--model: found 'scratch:smal'; did you mean 'scratch:small'\?"):
        scratch_size("scratch:smal")
    with pytest.raises(UsageError, match="found 'tiny'"):
        make_scratch("tiny", TEXTS, tmp_path, seed=0)


def test_the_names_load_the_standard_library_only() -> None:
    probe = "import sys, retrievo.models.scratch; print({'numpy', 'pyarrow', 'torch', 'tokenizers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True).stdout == "set()\n"

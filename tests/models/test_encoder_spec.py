"""What a model folder says: its JSON, its errors, and the pooling functions."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retrievo.models.encoder_spec import POOLINGS, SIMILARITIES, EncoderSpec
from retrievo.support.errors import RetrievoError

specs = st.builds(
    EncoderSpec,
    pooling=st.sampled_from(sorted(POOLINGS)),
    normalize=st.booleans(),
    similarity=st.sampled_from(SIMILARITIES),
    query_prefix=st.text(max_size=20),
    document_prefix=st.text(max_size=20),
    title_template=st.sampled_from(["{title} {text}", "{text}", "title: {title} text: {text}"]),
    query_max_length=st.integers(1, 10_000),
    document_max_length=st.integers(1, 10_000),
    tied=st.booleans(),
)


@given(specs)
def test_a_spec_survives_its_json(spec):
    assert EncoderSpec.from_json(spec.to_json()) == spec


def test_each_role_has_its_own_length_and_prefix():
    spec = EncoderSpec(query_prefix="q: ", document_prefix="d: ", query_max_length=8, document_max_length=9)
    assert [spec.prefix("query"), spec.prefix("document")] == ["q: ", "d: "]
    assert [spec.max_length("query"), spec.max_length("document")] == [8, 9]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pooling": "maen"}, "did you mean 'mean'"),
        ({"similarity": "euclidean"}, "known: dot, cosine"),
        ({"title_template": "{title}"}, "expected {text}"),
        ({"title_template": "{text} {year}"}, "expected {text}"),
        ({"title_template": "{text"}, "expected {title} and {text}"),
        ({"query_max_length": 0}, "query_max_length: 0 tokens"),
    ],
)
def test_a_value_out_of_range_is_named(change, message):
    with pytest.raises(RetrievoError, match=message):
        EncoderSpec(**change)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ("[]", "format None"),
        (json.dumps({"format": 2}), "format 2; expected format 1"),
        (json.dumps({"format": 1, "poling": "cls"}), "did you mean 'pooling'"),
        (json.dumps({"format": 1, "tied": 1}), "a value of type bool"),
        (json.dumps({"format": 1, "query_max_length": "32"}), "a value of type int"),
    ],
)
def test_a_file_that_is_not_ours_is_refused_with_its_name(text, message):
    with pytest.raises(RetrievoError, match=message) as caught:
        EncoderSpec.from_json(text, "stage-1/retrievo.json")
    assert str(caught.value).startswith("stage-1/retrievo.json: ")


@pytest.mark.parametrize("pooling", sorted(POOLINGS))
def test_pooling_never_sees_padding(pooling):
    torch.manual_seed(0)
    hidden, mask = torch.randn(4, 6, 8), torch.zeros(4, 6, dtype=torch.int64)
    for row, length in enumerate((1, 3, 5, 6)):
        mask[row, :length] = 1
    pooled = POOLINGS[pooling](hidden, mask)
    for row, length in enumerate((1, 3, 5, 6)):
        kept = hidden[row, :length]
        expected = {"cls": kept[0], "mean": kept.mean(dim=0), "last": kept[-1]}[pooling]
        torch.testing.assert_close(pooled[row], expected)


@pytest.mark.parametrize("pooling", sorted(POOLINGS))
def test_pooling_answers_in_float32(pooling):
    hidden = torch.randn(2, 3, 4).to(torch.bfloat16)
    assert POOLINGS[pooling](hidden, torch.ones(2, 3, dtype=torch.int64)).dtype == torch.float32


def test_option_tables_import_neither_torch_nor_numpy():
    code = "import sys, retrievo.models.encoder_spec, retrievo.models.dtypes as _; "
    code += "print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

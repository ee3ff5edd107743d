"""The model card (`README.md`) of a model folder: what it is and how to use it, in three libraries."""

from __future__ import annotations

from collections.abc import Mapping

from retrievo.models.encoder_spec import EncoderSpec

_SIMILARITY = {"dot": "the inner product", "cosine": "the cosine"}
_POOLING = {"cls": "the first token", "mean": "the mean of all tokens", "last": "the last token"}
_POOLING_CODE = {
    "cls": "hidden[:, 0]",
    "mean": "(hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)",
    "last": "hidden[torch.arange(len(hidden)), mask.sum(1) - 1]",
}


def model_card(spec: EncoderSpec, dim: int, facts: Mapping[str, object]) -> str:
    """The text of a model card; `facts` (name -> value: data, steps, figures) become a table."""
    sections = [_head(spec, dim), _properties(spec, dim), _usage(spec), _transformers(spec)]
    if facts:
        rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
        sections.append(f"## Training\n\n| | |\n|---|---|\n{rows}\n")
    return "\n".join(sections)


def cross_encoder_card(title_template: str, facts: Mapping[str, object]) -> str:
    """The text of the model card of a cross-encoder."""
    rows = "".join(f"| {name} | {value} |\n" for name, value in facts.items())
    training = f"\n## Training\n\n| | |\n|---|---|\n{rows}" if rows else ""
    return f"""---
library_name: sentence-transformers
pipeline_tag: text-ranking
tags:
- sentence-transformers
- cross-encoder
- retrievo
---

# A cross-encoder

It reads a query and a document together and gives one score, higher is better; title and text of a document become
`{title_template}`, stripped. It was made with retrievo, which reranks with it:

```sh
retrievo rerank --run run.parquet --model FOLDER --corpus CORPUS --queries QUERIES --output reranked.parquet
```

sentence-transformers gives the same scores:

```python
from sentence_transformers import CrossEncoder

scores = CrossEncoder("FOLDER").predict([("what is dense retrieval?", "Dense retrieval Texts become vectors.")])
```
{training}"""


def _head(spec: EncoderSpec, dim: int) -> str:
    kind = "one encoder for queries and documents" if spec.tied else "an encoder for queries and one for documents"
    return f"""---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags:
- sentence-transformers
- feature-extraction
- retrievo
---

# A dense retriever

It maps queries and documents to vectors of {dim} numbers ({kind});
documents are ranked by {_SIMILARITY[spec.similarity]} of their vectors with the query's. It was made with retrievo.
"""


def _properties(spec: EncoderSpec, dim: int) -> str:
    rows = {
        "pooling": f"{spec.pooling} ({_POOLING[spec.pooling]})",
        "vectors of unit length": "yes" if spec.normalize else "no",
        "similarity": spec.similarity,
        "longest query": f"{spec.query_max_length} tokens",
        "longest document": f"{spec.document_max_length} tokens",
        "prefix of queries": f"`{spec.query_prefix!r}`" if spec.query_prefix else "none",
        "prefix of documents": f"`{spec.document_prefix!r}`" if spec.document_prefix else "none",
        "title and text become": f"`{spec.title_template}`, stripped",
    }
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows.items()) + "\n"


def _usage(spec: EncoderSpec) -> str:
    newer = " (6 or newer)" if spec.query_max_length != spec.document_max_length or not spec.tied else ""
    return f"""## Use

retrievo applies lengths, prefixes and titles by itself:

```sh
retrievo encode --model FOLDER --corpus corpus.parquet --output embeddings/
retrievo search --index embeddings/ --queries queries.parquet --output run.parquet
```

sentence-transformers{newer} applies lengths and prefixes; join title and text yourself, as above:

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("FOLDER")
queries = model.encode_query(["what is dense retrieval?"])
documents = model.encode_document(["Dense retrieval Texts become vectors, near ones are relevant."])
scores = model.similarity(queries, documents)
```
"""


def _transformers(spec: EncoderSpec) -> str:
    folder = "FOLDER" if spec.tied else "FOLDER/query"
    prefix = f"{spec.query_prefix!r} + " if spec.query_prefix else ""
    normalize = "vectors = torch.nn.functional.normalize(vectors, dim=-1)\n" if spec.normalize else ""
    other = "" if spec.tied else " Documents: the same with `FOLDER/document`."
    return f"""transformers gives the vectors of the tokens; here for a query:{other}

```python
import torch
from transformers import AutoModel, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained("{folder}"), AutoModel.from_pretrained("{folder}")
texts = [{prefix}"what is dense retrieval?"]
inputs = tokenizer(texts, padding=True, truncation=True, max_length={spec.query_max_length}, return_tensors="pt")
with torch.inference_mode():
    hidden, mask = model(**inputs).last_hidden_state, inputs["attention_mask"]
vectors = {_POOLING_CODE[spec.pooling]}
{normalize}```
"""

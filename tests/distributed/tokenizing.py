"""What processes that are started together do where a test counts the threads that they tokenize on."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers


def tokenize(folder: Path) -> None:
    """Writes how many threads came with tokenizing, and what the environment says."""
    from retrievo.models.tokens import Tokenization  # which looks at what kind of process it is in

    words = Tokenizer(models.WordLevel({"flow": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenization = Tokenization(words.to_str(), None)
    before = len(os.listdir("/proc/self/task"))
    tokenization.tokenize(["flow over a wing"] * 1_000)
    found = {name: os.environ.get(name) for name in ("TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS")}
    found["threads"] = len(os.listdir("/proc/self/task")) - before
    (folder / os.environ.get("RANK", "alone")).write_text(json.dumps(found))

"""Detects repeated ids: a ledger on disk that is sorted at the end, and a set in memory for immediate lookups."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np


class Ledger:
    """The ids of one table as 64-bit hashes on disk, each with its place in the source: 16 bytes per id, no memory.

    The probability that any two of n different ids share a hash is n^2 / 2^65: 2 in a million for 8.8 M ids.
    """

    def __init__(self, stem: Path):
        self._paths = {name: stem.with_suffix(f".{name}") for name in ("hashes", "places", "sorted")}
        self._hashes = self._paths["hashes"].open("wb")
        self._places = self._paths["places"].open("wb")

    def add(self, hashes: np.ndarray, places: np.ndarray) -> None:
        """Adds rows: hashes and places, both [n] uint64."""
        self._hashes.write(hashes.tobytes())
        self._places.write(places.astype("<u8").tobytes())

    def _read(self, name: str, mode: str = "r") -> np.ndarray:
        self._hashes.flush()
        self._places.flush()
        path = self._paths[name]
        return np.memmap(path, "<u8", mode) if path.stat().st_size else np.zeros(0, "<u8")  # type: ignore[call-overload]

    @property
    def places(self) -> np.ndarray:
        """The place of every row."""
        return self._read("places")

    def places_of(self, hash: np.uint64) -> np.ndarray:
        """The places where one id has occurred so far."""
        return self.places[np.flatnonzero(self._read("hashes") == hash)]

    @property
    def _sorted(self) -> np.ndarray:
        if not self._paths["sorted"].exists():
            self._read("hashes")  # flushes
            shutil.copyfile(self._paths["hashes"], self._paths["sorted"])
            self._read("sorted", "r+").sort()  # sorted within the file, so that the kernel can evict its pages
        return self._read("sorted")

    def first_repeated(self) -> tuple[int, int] | None:
        """The first two rows of the earliest repeated id; None where every id occurs once."""
        ordered = self._sorted
        repeated = ordered[1:][ordered[1:] == ordered[:-1]]
        if not len(repeated):
            return None
        unsorted = self._read("hashes")
        first = int(np.flatnonzero(np.isin(unsorted, repeated))[0])
        return first, int(np.flatnonzero(unsorted == unsorted[first])[1])

    def knows(self, hashes: np.ndarray) -> np.ndarray:
        """Whether each id is in this table, [n] bool."""
        return _find(self._sorted, hashes)[1]


class SeenHashes:
    """A growing map from 64-bit keys to 64-bit values, at 16 bytes per key.

    It consists of sorted runs that are merged as they grow, so each key moves a logarithmic number of times.
    """

    def __init__(self) -> None:
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []

    def admit(self, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Adds keys [n]; returns which are new and which occurred before with another value (both [n] bool)."""
        unique, first, back = np.unique(keys, return_index=True, return_inverse=True)
        value, fresh = values[first], np.ones(len(unique), bool)
        for known, known_values in self._runs:
            place, hit = _find(known, unique)
            fresh &= ~hit
            value[hit] = known_values[place[hit]]
        new = np.zeros(len(keys), bool)
        new[first[fresh]] = True
        if fresh.any():
            self._runs.append((unique[fresh], value[fresh]))
            self._merge()
        return new, values != value[back]

    def _merge(self) -> None:
        while len(self._runs) > 1 and len(self._runs[-2][0]) < 2 * len(self._runs[-1][0]):
            (keys, values), (more, more_values) = self._runs[-2:]
            joined = np.concatenate([keys, more])
            order = np.argsort(joined, kind="stable")
            self._runs[-2:] = [(joined[order], np.concatenate([values, more_values])[order])]


def _find(known: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The position of each key among sorted keys, and whether it is present, both [n]."""
    if not len(known):
        return np.zeros(len(keys), np.int64), np.zeros(len(keys), bool)
    place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return place, known[place] == keys

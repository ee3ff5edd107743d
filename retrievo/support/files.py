"""Files that are written atomically, and fingerprints that tell whether two inputs are the same."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from retrievo.support.errors import RetrievoError
from retrievo.support.values import Values

MEBIBYTE = 1 << 20
_PARQUET_MAGIC = b"PAR1"
_FULL = re.compile(r"No space left on device|Disk quota exceeded|^\d+ requested and \d+ written")


class HashingFile:
    """A binary file that hashes its bytes while they are written, so that a content hash needs no second read."""

    def __init__(self, path: Path):
        self._file: IO[bytes] = path.open("wb")
        self._hash = hashlib.blake2b(digest_size=16)
        self.size = 0

    def write(self, data: Any) -> int:
        self._hash.update(data)
        written = self._file.write(data)
        self.size += written
        return written

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self._file.flush()

    @property
    def closed(self) -> bool:
        return self._file.closed

    def close(self) -> None:
        """Closes the file after flushing it to disk, so that a power failure cannot leave a renamed empty file."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def record(self) -> Values:
        """The size in bytes and the content hash, as a manifest lists them."""
        return {"bytes": self.size, "blake2b": self._hash.hexdigest()}

    def __enter__(self) -> HashingFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path that is renamed to `path` when the block ends without an error.

    Raises: RetrievoError where the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with reporting_full_disk(path):
            yield temporary
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def reporting_full_disk(path: Path) -> Iterator[None]:
    """Converts the error of any writer on a full disk into one error that names the path."""
    try:
        yield
    except Exception as problem:
        if disk_error := full_disk(path, problem):
            raise disk_error from problem
        raise


def full_disk(path: Path, problem: BaseException) -> RetrievoError | None:
    """The error for a full disk at `path`; None where the problem is another one.

    Libraries in other languages (safetensors, FAISS, Arrow, Lucene) report it only in the message, and NumPy only by
    the number of items written.
    """
    if isinstance(problem, RetrievoError):
        return None
    if getattr(problem, "errno", None) not in (errno.ENOSPC, errno.EDQUOT) and not _FULL.search(str(problem)):
        return None
    home = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(home).free / MEBIBYTE
    fix = "free some space there and run the same command again"
    return RetrievoError(path, f"the disk is full ({free:,.0f} MiB free)", None, fix)


def write_json(path: Path, value: object) -> None:
    """Writes JSON atomically, keys in the order given, numbers exact."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def sync(path: Path) -> None:
    """Waits until the disk has a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Removes a file or a whole folder; absent is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def file_record(path: Path) -> Values:
    """Size and content hash of a file written by somebody else's writer (Lucene, FAISS), by one full read."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(4 * MEBIBYTE):
            digest.update(block)
    return {"bytes": path.stat().st_size, "blake2b": digest.hexdigest()}


def fingerprint(paths: list[Path]) -> str:
    """A hash of foreign files by size, first and last MiB, and Parquet footer; never a full read.

    Names count only where several files make one input: a renamed or moved file is the same input.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name if len(paths) > 1 else ''}\0{size}\0".encode(errors="surrogateescape"))
        with path.open("rb") as file:
            digest.update(file.read(MEBIBYTE))
            file.seek(max(MEBIBYTE, size - _tail(file, size)))
            digest.update(file.read())
    return digest.hexdigest()


def is_parquet(path: Path) -> bool:
    """Whether a file begins as Parquet does; it may be cut short."""
    with path.open("rb") as file:
        return file.read(4) == _PARQUET_MAGIC


def reads_as_parquet(path: Path) -> bool:
    """Whether a file is Parquet by its name, or by its content whatever its name."""
    return path.suffix in (".parquet", ".pq") or is_parquet(path)


def _tail(file: IO[bytes], size: int) -> int:
    """How much of the end to read: 1 MiB, or the whole footer of a Parquet file where that is longer."""
    if size < 8:
        return size
    file.seek(size - 8)
    length, magic = file.read(4), file.read(4)
    return max(MEBIBYTE, int.from_bytes(length, "little") + 8) if magic == _PARQUET_MAGIC else MEBIBYTE

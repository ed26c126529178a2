"""The journal beside a table: every finished result, once, whatever kills the sweep."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from graphsim.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FORMAT = "graphsim-sweep-journal/1"
_CHECK = "sha256"
_HEADER = json.dumps({"journal": FORMAT}).encode() + b"\n"


class Journal:
    """JSON lines: a header; a line per result, ``{"key", "found"}``; a line per table written, ``{"table", "keys"}``.

    A line is one write, on the disk before `add` returns. It ends in a checksum of what stands before: a line that was
    cut off, or of which a digit has changed, is no result. It is dropped, and the point is computed anew.

    Attributes:
        damaged: number of lines that were dropped.
        found: results by key.
        tables: the keys of the rows of each table that was written, by the SHA-256 of the file.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.found: dict[str, dict[str, Any]] = {}
        self.tables: dict[str, frozenset[str]] = {}
        self.damaged = 0
        self._descriptor = descriptor
        self._read()

    def add(self, key: str, found: Mapping[str, Any]) -> None:
        """Keep a result."""
        self._append({"key": key, "found": dict(found)})
        self.found[key] = dict(found)

    def add_table(self, content: bytes, keys: Sequence[str]) -> None:
        """Keep which rows make up a table that is about to be written."""
        name = digest(content)
        if name not in self.tables:
            self._append({"table": name, "keys": list(keys)})
            self.tables[name] = frozenset(keys)

    def _append(self, entry: Mapping[str, Any]) -> None:
        self._write(_line(entry))

    def _write(self, line: bytes) -> None:
        end = os.lseek(self._descriptor, 0, os.SEEK_END)
        try:
            written = os.write(self._descriptor, line)
            os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, end)
            raise UsageError(f"{self.path}: {error.strerror}; the results before this one are kept") from None
        if written < len(line):
            os.ftruncate(self._descriptor, end)
            raise UsageError(f"{self.path}: the disk is full; the results before this one are kept")

    def _read(self) -> None:
        """Read all whole lines; what follows the last one is cut off, so that the next line begins a line."""
        whole = 0
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            head = file.readline(len(_HEADER))
            if head == _HEADER:
                whole = len(head)
                for line in file:
                    if line.endswith(b"\n"):
                        whole += len(line)
                        self._take(line)
            elif not _HEADER.startswith(head):
                raise UsageError(f"{self.path} is not a journal of graphsim sweep; choose another --output")
        os.ftruncate(self._descriptor, whole)
        if not whole:
            self._write(_HEADER)
            _sync(self.path.parent)

    def _take(self, line: bytes) -> None:
        entry = _checked(line)
        if entry is None:
            self.damaged += 1
        elif isinstance(entry.get("found"), dict):
            self.found[str(entry.get("key"))] = entry["found"]
        elif isinstance(entry.get("keys"), list):
            self.tables[str(entry.get("table"))] = frozenset(map(str, entry["keys"]))


def _line(entry: Mapping[str, Any]) -> bytes:
    """Return the line of *entry*, with the checksum of what it says."""
    checksum = digest(json.dumps(dict(entry)).encode())[:16]
    return json.dumps(dict(entry) | {_CHECK: checksum}).encode() + b"\n"


def _checked(line: bytes) -> dict[str, Any] | None:
    """Return the entry of *line* if it is, to the bit, as it was written."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):  # a crash of the machine may leave zeros
        return None
    if not isinstance(entry, dict):
        return None
    entry.pop(_CHECK, None)
    return entry if line == _line(entry) else None


@contextmanager
def opened(path: Path) -> Iterator[Journal]:
    """Give the journal *path*, made if there is none, to this process alone.

    Raises:
        UsageError: it is no journal, another sweep has it, or it cannot be written.
    """
    if fcntl is None:
        raise UsageError("graphsim sweep needs the file locks of Linux or macOS")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    try:
        _lock(path, descriptor)
        yield Journal(path, descriptor)
    finally:
        os.close(descriptor)  # lets go of the lock, as any end of this process does


def _lock(path: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(f"{path}: another sweep is writing there; wait for it or choose another --output") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be locked: {error.strerror}") from None


def write_durably(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; it is on the disk when this returns.

    Raises:
        UsageError: it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync(path.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UsageError(f"{path}: {error.strerror}") from None


def _sync(folder: Path) -> None:
    """Put the names in *folder* on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(content: bytes) -> str:
    """Return the name of a file's content."""
    return hashlib.sha256(content).hexdigest()

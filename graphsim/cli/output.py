"""Where output goes: standard output, or a file that is written whole or not at all."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from graphsim.core.files import KINDS
from graphsim.errors import UsageError

STDOUT = "-"
"""The name by which standard output is asked for."""


def write_output(path: str | Path, content: bytes) -> None:
    """Write *content* to the file *path*, whole or not at all; ``-`` is standard output.

    A symbolic link stays one: what it points to is written, with the mode that it has.

    Raises:
        UsageError: it is there and no regular file, or cannot be written.
    """
    if str(path) == STDOUT:
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    try:
        target = Path(path).resolve()
        _replace(target, content, _mode(target))
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links that point at each other
        raise UsageError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def _mode(target: Path) -> int:
    """Return the permissions of the file that *target* is or will be."""
    try:
        status = target.stat()
    except FileNotFoundError:
        mask = os.umask(0)  # can only be read by setting it
        os.umask(mask)
        return 0o666 & ~mask
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "no file")
        raise OSError(f"is {kind}; output goes to a regular file, or to standard output by the name -")
    if not os.access(target, os.W_OK):
        raise PermissionError(13, "Permission denied")
    return stat.S_IMODE(status.st_mode)


def _replace(target: Path, content: bytes, mode: int) -> None:
    descriptor, part = tempfile.mkstemp(prefix=f".{target.name[:100]}.", suffix=".part", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(part).chmod(mode)
        Path(part).replace(target)
    except BaseException:
        with suppress(OSError):
            Path(part).unlink()
        raise

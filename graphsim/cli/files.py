"""Files that commands write."""

from __future__ import annotations

import sys
from pathlib import Path

from graphsim.errors import UsageError


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; ``-`` is standard output.

    Raises:
        UsageError: it cannot be written.
    """
    if str(path) == "-":
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        return
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UsageError(f"{path}: {error.strerror}") from None

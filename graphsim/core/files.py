"""Files of strangers, read with bounds: regular files of a bounded size, UTF-8, JSON whose keys stand once."""

from __future__ import annotations

import json
import stat
from collections import Counter
from pathlib import Path
from typing import Any

from graphsim.errors import SpecError

KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}
"""What a path may name besides a regular file."""


def read_text(source: str | Path, limit: int) -> str:
    """Return the text of the file *source*, without a byte order mark.

    Raises:
        SpecError: it is no regular file, larger than *limit* bytes, not UTF-8, or cannot be read.
    """
    check_file(source, limit)
    try:
        with Path(source).open("rb") as file:
            content = file.read(limit + 1)  # it may have grown since
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(f"not UTF-8 text (byte {error.start})", str(source)) from None
    except OSError as error:
        raise SpecError(error.strerror or str(error), str(source)) from None


def check_file(source: str | Path, limit: int) -> None:
    """Check that *source* names a regular file of at most *limit* bytes: to open a pipe is to wait for ever.

    Raises:
        SpecError: it does not.
    """
    try:
        status = Path(source).stat()
    except (OSError, ValueError) as error:
        raise SpecError(getattr(error, "strerror", None) or str(error), str(source)) from None
    if not stat.S_ISREG(status.st_mode):
        raise SpecError(f"is {KINDS.get(stat.S_IFMT(status.st_mode), 'no file')}, not a file", str(source))
    if status.st_size > limit:
        raise SpecError(f"the file is larger than {limit} bytes", str(source))


def parse_json(text: str) -> Any:
    """Return what the JSON *text* holds.

    Raises:
        ValueError: it is not JSON, nested too deeply, or a key stands twice in an object.
    """
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key '{twice[:60]}' stands twice in an object")
    return table

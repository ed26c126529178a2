"""Reading ``config.json``: strictly as data, from a local file."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from graphsim.core.files import check_file
from graphsim.errors import SpecError, UsageError, suggest
from graphsim.sources.spec.expression import Value

MAX_FILE = 2**20
MAX_NUMBER = 2**31
"""Greater integers are taken for mistakes."""

REMOTE = ("auto_map", "_name_or_path", "custom_pipelines")
"""Fields that name code or files elsewhere: left out."""


def read_config(path: str) -> dict[str, Any]:
    """Return the fields of the config in the file, or the folder, *path*.

    Raises:
        SpecError: there is no such file, or it is not a config.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "config.json"
    try:
        if file.exists():
            check_file(file, MAX_FILE)
        data = json.loads(file.read_text(encoding="utf-8"))
        _check(data, path)
    except UnicodeDecodeError as error:
        raise SpecError(f"not UTF-8 text (byte {error.start})", path) from None
    except json.JSONDecodeError as error:
        raise SpecError(f"not JSON: {error}", path) from None
    except (RecursionError, ValueError):
        raise SpecError("not JSON that we read: nested too deeply, or a number of thousands of digits", path) from None
    except OSError as error:
        raise SpecError(f"{error.strerror or error}; 'hf:' takes a local config.json or its folder", path) from None
    if not isinstance(data, dict):
        raise SpecError("not a config: a JSON object is expected", path)
    names = data.get("architectures")
    if not isinstance(names, str | None) and not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
        raise SpecError("'architectures' is a list of class names", path)
    return data


def known_type(data: Mapping[str, Any], known: Collection[str], path: str) -> str:
    """Return the ``model_type``, one of those that transformers itself has.

    Raises:
        SpecError: it is missing or unknown, or lives in code of its own.
    """
    name = data.get("model_type")
    if not isinstance(name, str):
        raise SpecError("no 'model_type': not the config of a transformers model", path)
    if name in known:
        return name
    if "auto_map" in data:
        reason = f"model_type '{name[:60]}' is code of its own (auto_map), which is never run"
        raise SpecError(f"{reason}; write a function that makes the model: torch:module:function", path)
    raise SpecError(f"transformers has no model_type '{name[:60]}'; {suggest(name, known)}", path)


def plain_fields(value: Any) -> Any:
    """Return what describes the architecture, without what points elsewhere, in nested configs too."""
    if isinstance(value, list):
        return [plain_fields(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    special = value.get("__float__")
    if special in ("Infinity", "-Infinity", "NaN"):  # as transformers writes numbers that JSON lacks
        return float(special)
    return {key: plain_fields(entry) for key, entry in value.items() if key not in REMOTE}


def check_changes(config: Any, changes: Mapping[str, Value], path: str) -> None:
    """Check *changes* of fields of *config*.

    Raises:
        UsageError: it has no such field, or the value is out of bounds.
    """
    known = [*config.to_dict(), *config.attribute_map, "attn_implementation", "batch", "seq", "image_size"]
    for name in changes:
        if name not in known:
            raise UsageError(f"{path} has no field '{name[:60]}' to set; {suggest(name, known)}")
    try:
        _check(dict(changes), path)
    except SpecError as error:
        raise UsageError(str(error)) from None


def _check(value: Any, path: str, key: str = "") -> None:
    if isinstance(value, dict):
        for name, entry in value.items():
            _check(entry, path, name)
    elif isinstance(value, list):
        for entry in value:
            _check(entry, path, key)
    elif isinstance(value, int) and abs(value) > MAX_NUMBER:
        raise SpecError(f"'{key[:60]}' is beyond any real model", path)
    elif isinstance(value, str) and key.endswith("_implementation") and "/" in value:
        # transformers would fetch and run it (integrations/hub_kernels.py).
        raise SpecError(f"'{key}' names code on the Hub, '{value[:60]}', which is never run", path)

"""Options given as text: one of several names, or those of a plug-in, ``limit=16GiB,expandable_segments:True``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from graphsim.errors import UnknownNameError, UsageError
from graphsim.units import parse_bytes

_ENTRY = re.compile(r"\s*(\w{1,60})\s*[=:]\s*(\[[^\]]*\]|[^,\[\]]*)\s*(?:,|$)")
_MAX_TEXT = 4096

Name = TypeVar("Name", bound=str)
P = TypeVar("P")


def parse_choice(what: str, text: str, known: Sequence[Name]) -> Name:
    """Return the one of the names *known* of a *what* that *text* is.

    Raises:
        UnknownNameError: it is none of them.
    """
    for name in known:
        if name == text:
            return name
    raise UnknownNameError(what, str(text), known)


def configure(plugin: Callable[..., P], text: str) -> P:
    """Return *plugin*, a dataclass, with the options that *text* sets; the rest keep their defaults.

    Entries are separated by commas, ``name=value`` or, as in PYTORCH_ALLOC_CONF, ``name:value``.
    Whole numbers may carry a unit of bytes.

    Raises:
        UnknownNameError: an option does not exist.
        UsageError: a value has the wrong type or is out of its range.
    """
    if not text.strip():
        return plugin()
    types = _types_of(plugin)
    chosen: dict[str, Any] = {}
    for name, value in _entries(text):
        if name not in types:
            raise UnknownNameError("option", name, types)
        if name in chosen:
            raise UsageError(f"option {name} stands twice")
        chosen[name] = _value(name, value, types[name])
    return plugin(**chosen)


def _types_of(plugin: object) -> dict[str, str]:
    if not is_dataclass(plugin):
        raise UsageError("this plug-in has no options")
    return {field.name: str(field.type) for field in fields(plugin)}


def _entries(text: str) -> Iterator[tuple[str, str]]:
    position = 0
    while position < len(text):
        match = _ENTRY.match(text, position) if len(text) <= _MAX_TEXT else None
        if match is None:
            raise UsageError(f"options {text[:80]!r}: write name=value, separated by commas")
        yield match[1], match[2].strip()
        position = match.end()


def _value(name: str, text: str, kind: str) -> Any:
    if kind == "bool":
        if text.lower() not in ("true", "false"):
            raise UsageError(f"option {name} is True or False, not {text[:40]!r}")
        return text.lower() == "true"
    if kind.startswith("int"):
        return parse_bytes(text)
    if kind == "float":
        try:
            return float(text)
        except ValueError:
            raise UsageError(f"option {name} is a number, not {text[:40]!r}") from None
    return text

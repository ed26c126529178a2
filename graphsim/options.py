"""Options given as text: one of several names, or those of a plug-in, ``limit=16GiB,expandable_segments:True``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from graphsim.errors import UnknownNameError, UsageError
from graphsim.units import parse_bytes

_MAX_TEXT = 4096
_UNITS = {"_mb": 2**20}
"""Bytes of one, by the end of an option's name: ``max_split_size_mb=128`` and ``=128MiB`` are the same."""

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
    Whole numbers may carry a unit of bytes, whatever the option counts in.

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
    """Yield name and value of each entry; a value in brackets may hold commas."""
    wrong = UsageError(f"options {text[:80]!r}: write name=value, separated by commas")
    if len(text) > _MAX_TEXT:
        raise wrong
    position = 0
    while position < len(text):
        sign = min((at for at in (text.find("=", position), text.find(":", position)) if at >= 0), default=len(text))
        name, begin = text[position:sign].strip(), sign + 1
        closed = text.find("]", begin) + 1 if text[begin:].lstrip().startswith("[") else begin
        end = text.find(",", closed)
        end = len(text) if end < 0 else end
        value = text[begin:end].strip()
        listed = value.startswith("[") and value.find("]") == len(value) - 1
        if sign == len(text) or not name.isidentifier() or not (listed or not set("[]") & set(value)):
            raise wrong
        yield name, value
        position = end + 1


def _value(name: str, text: str, kind: str) -> Any:
    if kind == "bool":
        if text.lower() not in ("true", "false"):
            raise UsageError(f"option {name} is True or False, not {text[:40]!r}")
        return text.lower() == "true"
    if kind.startswith("int"):
        return _whole(name, text)
    if kind == "float":
        try:
            return float(text)
        except ValueError:
            raise UsageError(f"option {name} is a number, not {text[:40]!r}") from None
    return text


def _whole(name: str, text: str) -> int:
    """Return a whole number in the unit of the option's name; it may carry a unit of bytes of its own."""
    unit = next((size for end, size in _UNITS.items() if name.endswith(end)), 1)
    if text.isdecimal():
        return parse_bytes(text)
    number, rest = divmod(parse_bytes(text), unit)
    if rest:
        raise UsageError(f"option {name} counts in MiB, and {text[:40]} is no whole number of them")
    return number

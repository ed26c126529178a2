"""Checked access to the fields of a parsed spec: each error says where and what would be right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any

from graphsim.errors import SpecError, suggest
from graphsim.sources.spec.expression import MAX_VALUE, Value, evaluate
from graphsim.step.ops.kind import REQUIRED, Attribute
from graphsim.units import format_number


def table_of(data: Mapping[str, Any], key: str, where: str, *, optional: bool = False) -> dict[str, Any]:
    """Return the table ``[key]``."""
    if key not in data:
        if optional:
            return {}
        raise SpecError(f"section [{key}] is missing", where)
    if not isinstance(data[key], dict):
        raise SpecError(f"[{key}] must be a table", where)
    return dict(data[key])


def reject_unknown(table: Mapping[str, Any], known: Iterable[str], where: str, what: str) -> None:
    """Raise if *table* has a key that is not *known*."""
    known = list(known)
    for key in table:
        if key not in known:
            raise SpecError(f"unknown {what} '{key[:60]}'; {suggest(key, known)}", where)


def text_list(value: Any, where: str) -> list[str]:
    """Return a string or a list of strings as a list."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(text, str) for text in values):
        raise SpecError(f"must be a name or a list of names, not {value!r:.60}", where)
    return values


def integer(
    value: Any, scope: Mapping[str, Value], where: str, what: str, *, minimum: float = 0, maximum: float = MAX_VALUE
) -> int:
    """Return *value*, an integer or arithmetic over *scope*, within bounds."""
    number = evaluate(value, scope, where) if isinstance(value, str) else value
    if type(number) is not int:
        raise SpecError(f"{what} must be an integer, not {value!r:.60}", where)
    if not minimum <= number <= maximum:
        bound = f"at least {minimum:g}" if number < minimum else f"at most {maximum:g}"
        raise SpecError(f"{what} must be {bound}, not {format_number(number)}", where)
    return number


def attribute_value(attribute: Attribute, value: Any, scope: Mapping[str, Value], where: str) -> Any:
    """Return the value of *attribute*: the one written, evaluated and checked, or its default."""
    what = f"'{attribute.name}'"
    if value is None:
        if attribute.default is REQUIRED:
            raise SpecError(f"{what} is missing ({attribute.about or attribute.type})", where)
        return attribute.default
    read = _READERS[attribute.type]
    return read(attribute, value, scope, where, what)


def _read_int(attribute: Attribute, value: Any, scope: Mapping[str, Value], where: str, what: str) -> int:
    return integer(value, scope, where, what, minimum=attribute.minimum, maximum=attribute.maximum)


def _read_float(attribute: Attribute, value: Any, scope: Mapping[str, Value], where: str, what: str) -> float:
    number = evaluate(value, scope, where) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not isfinite(number):
        raise SpecError(f"{what} must be a number, not {value!r:.60}", where)
    if not attribute.minimum <= number <= attribute.maximum:
        raise SpecError(f"{what} must lie in {attribute.minimum:g} ... {attribute.maximum:g}, not {number:g}", where)
    return float(number)


def _read_bool(attribute: Attribute, value: Any, scope: Mapping[str, Value], where: str, what: str) -> bool:
    flag = scope.get(value) if isinstance(value, str) else value
    if not isinstance(flag, bool):
        raise SpecError(f"{what} must be true or false, not {value!r:.60}", where)
    return flag


def _read_name(attribute: Attribute, value: Any, scope: Mapping[str, Value], where: str, what: str) -> str:
    name = scope.get(value, value) if isinstance(value, str) else value
    if name not in attribute.choices:
        raise SpecError(f"{what} cannot be {name!r:.60}; {suggest(str(name), attribute.choices)}", where)
    return str(name)


def _read_ints(attribute: Attribute, value: Any, scope: Mapping[str, Value], where: str, what: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > 64:
        raise SpecError(f"{what} must be a list of integers, not {value!r:.60}", where)
    return tuple(_read_int(attribute, number, scope, where, what) for number in value)


def _read_pair(attribute: Attribute, value: Any, scope: Mapping[str, Value], where: str, what: str) -> Any:
    if isinstance(value, list):
        return _read_ints(attribute, value, scope, where, what)
    return _read_int(attribute, value, scope, where, what)


_READERS: dict[str, Any] = {
    "int": _read_int,
    "float": _read_float,
    "bool": _read_bool,
    "name": _read_name,
    "ints": _read_ints,
    "pair": _read_pair,
}

"""Integer arithmetic in specs: ``"4*width"``, ``"seq // 2 + 1"``. Parsed, never executed."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping

from graphsim.errors import SpecError, suggest
from graphsim.units import format_number

Value = int | float | bool | str

MAX_LENGTH = 200
MAX_VALUE = 2**48
"""Greater numbers are taken for mistakes: no model has 2.8e14 of anything."""

_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


def read_value(text: str) -> Value:
    """Return what *text* says: true or false, a number, or else itself."""
    if text in ("true", "false"):
        return text == "true"
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def evaluate(text: str, scope: Mapping[str, Value], where: str) -> Value:
    """Return the value of *text*: a name of *scope* alone, or arithmetic (+ - * //) on integers.

    Raises:
        SpecError: not such an expression, an unknown name, or a result out of range.
    """
    text = text.strip()
    if text in scope:
        return scope[text]
    if len(text) > MAX_LENGTH:
        raise SpecError(f"expression of {len(text)} characters; at most {MAX_LENGTH} are allowed", where)
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise SpecError(f"'{text}' is not arithmetic (+ - * //) over integers and params", where) from None
    return _integer(tree, text, scope, where)


def _integer(node: ast.expr, text: str, scope: Mapping[str, Value], where: str) -> int:
    value: Value
    if isinstance(node, ast.Constant) and type(node.value) is int:
        value = node.value
    elif isinstance(node, ast.Name):
        if node.id not in scope:
            raise SpecError(f"cannot evaluate '{text}': no param '{node.id}'; {suggest(node.id, scope)}", where)
        value = scope[node.id]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = -_integer(node.operand, text, scope, where)
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left = _integer(node.left, text, scope, where)
        right = _integer(node.right, text, scope, where)
        if right == 0 and isinstance(node.op, ast.FloorDiv):
            raise SpecError(f"'{text}' divides by zero", where)
        value = _OPERATORS[type(node.op)](left, right)
    else:
        raise SpecError(f"'{text}' is not arithmetic (+ - * //) over integers and params", where)
    if type(value) is not int:
        raise SpecError(f"'{text}' needs integers, but a param in it is {value!r}", where)
    if abs(value) > MAX_VALUE:
        raise SpecError(f"'{text}' is {format_number(value)}, beyond any real model", where)
    return value

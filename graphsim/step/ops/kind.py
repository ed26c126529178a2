"""What a kind of op is: its attributes, its shape rule, and how a target runs and differentiates it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from graphsim.core.graph import Role, Tensor
from graphsim.step.ops.tape import Tape, Type

Attributes = Mapping[str, Any]
"""Attribute values of one op, checked and completed with defaults."""

REQUIRED: Any = object()
"""Default of an attribute that has none."""


class ShapeError(Exception):
    """Operand shapes do not suit an op; the frontend adds where."""


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute of an op kind, as specs write it.

    type: 'int', 'float', 'bool', 'name' (one of *choices*), 'ints' (a list), or 'pair' (an int for
    all spatial dimensions, or a list of one per dimension). Numbers lie in [minimum, maximum].
    """

    name: str
    type: Literal["int", "float", "bool", "name", "ints", "pair"]
    default: Any = REQUIRED
    about: str = ""
    choices: tuple[str, ...] = ()
    minimum: float = 0
    maximum: float = 2**31


@dataclass(frozen=True, slots=True)
class Parameter:
    """A tensor that a layer owns: a parameter, or a buffer."""

    name: str
    shape: tuple[int, ...]
    role: Role = Role.PARAMETER
    dtype: str = ""
    """Empty: the model's floating dtype."""


@dataclass(frozen=True, slots=True)
class Signature:
    """Result of a shape rule: what the op writes and the tensors that its layer owns."""

    outputs: tuple[Type, ...]
    parameters: tuple[Parameter, ...] = ()


Infer = Callable[[Sequence[Type], Attributes], Signature]
Lower = Callable[[Tape, Sequence[Tensor], Mapping[str, Tensor], Attributes], Tensor | tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True)
class Kind:
    """One entry of the table of ops.

    Attributes:
        name: as specs write it.
        infer: shape rule: (operand types, attributes) -> `Signature`; raises `ShapeError`.
        lower: emits the kernels: (tape, operands, owned tensors by name, attributes) -> outputs.
        operands: least and greatest number of operands.
        about: one line for people.
        source: where the framework's behaviour is defined.
        counted: the outputs count as activations in the folk formulas.
    """

    name: str
    infer: Infer
    lower: Lower
    attributes: tuple[Attribute, ...] = ()
    operands: tuple[int, int] = (1, 1)
    about: str = ""
    source: str = ""
    counted: bool = True


def same(types: Sequence[Type], attributes: Attributes) -> Signature:
    """Shape rule of elementwise ops of one operand."""
    return Signature((types[0],))


def describe(kind: Kind) -> dict[str, Any]:
    """Return *kind* as plain data, for listings and schemas."""
    least, most = kind.operands
    return {
        "name": kind.name,
        "about": kind.about,
        "source": kind.source,
        "operands": str(least) if least == most else f"{least} to {most}",
        "attributes": [
            {
                "name": a.name,
                "type": a.type,
                "default": "required" if a.default is REQUIRED else a.default,
                "about": a.about + (f" ({', '.join(a.choices)})" if a.choices else ""),
            }
            for a in kind.attributes
        ],
    }

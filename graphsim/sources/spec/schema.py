"""The JSON Schema of spec files, made from the table of ops, for editors."""

from __future__ import annotations

from typing import Any

from graphsim.step.ops import kinds
from graphsim.step.ops.kind import REQUIRED, Attribute, Kind
from graphsim.units import ITEMSIZE

_NAME = "^[A-Za-z0-9_-]{1,100}$"
_EXPRESSION = {"type": "string", "description": "A param, or integer arithmetic (+ - * //) over params."}
_INTEGER = {"anyOf": [{"type": "integer"}, _EXPRESSION]}
_LAYER_WORDS: dict[str, Any] = {
    "from": {"type": "string", "description": "First operand: a layer or input; by default the previous layer."},
    "with": {
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
        "description": "Further operands.",
    },
    "name": {"type": "string", "pattern": _NAME, "description": "Name of the layer; others refer to it."},
    "repeat": {**_INTEGER, "description": "How many times the layer stands in a row."},
    "frozen": {"type": "boolean", "description": "The layer's parameters are not trained."},
}


def spec_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a spec file."""
    table = kinds()
    simple = sorted(name for name, kind in table.items() if not _required(kind))
    layer = {
        "anyOf": [
            {"enum": simple, "description": "An op without attributes."},
            *({"$ref": f"#/$defs/{name}"} for name in sorted(table)),
            {"$ref": "#/$defs/block_layer"},
        ]
    }
    layers = {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/layer"}}
    value = {"type": ["integer", "number", "boolean", "string"]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "graphsim model spec",
        "type": "object",
        "additionalProperties": False,
        "required": ["inputs", "model"],
        "properties": {
            "name": {"type": "string", "maxLength": 100},
            "about": {"type": "string", "description": "One line: which model, from where."},
            "params": {
                "type": "object",
                "additionalProperties": value,
                "description": "Defaults that --set overrides.",
            },
            "inputs": {
                "type": "object",
                "minProperties": 1,
                "propertyNames": {"pattern": _NAME},
                "additionalProperties": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["shape"],
                    "properties": {
                        "shape": {"type": "array", "maxItems": 8, "items": _INTEGER},
                        "dtype": {"enum": sorted(ITEMSIZE)},
                    },
                },
            },
            "block": {
                "type": "object",
                "additionalProperties": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["layers"],
                    "properties": {"args": {"type": "object", "additionalProperties": value}, "layers": layers},
                },
            },
            "model": {
                "type": "object",
                "additionalProperties": False,
                "required": ["layers"],
                "properties": {
                    "layers": layers,
                    "outputs": {"type": "array", "items": {"type": "string"}},
                },
            },
        },
        "$defs": {
            "layer": layer,
            "block_layer": {
                "type": "object",
                "required": ["block"],
                "properties": {"block": {"type": "string"}, **_LAYER_WORDS},
                "additionalProperties": value,
            },
            **{name: _op_schema(kind) for name, kind in sorted(table.items())},
        },
    }


def _required(kind: Kind) -> list[str]:
    return [a.name for a in kind.attributes if a.default is REQUIRED]


def _op_schema(kind: Kind) -> dict[str, Any]:
    properties: dict[str, Any] = {"op": {"const": kind.name}}
    properties |= {a.name: _attribute_schema(a) for a in kind.attributes}
    tied = {"type": "string", "description": "A parameter tied to another layer's, for example wte.weight."}
    return {
        "type": "object",
        "description": kind.about,
        "required": ["op", *_required(kind)],
        "properties": {**properties, **_LAYER_WORDS},
        # A further key names a parameter of the layer and ties it to another's.
        "additionalProperties": tied,
    }


def _attribute_schema(attribute: Attribute) -> dict[str, Any]:
    description = {"description": attribute.about} if attribute.about else {}
    default = {} if attribute.default in (REQUIRED, None) else {"default": attribute.default}
    integers = {"type": "array", "items": _INTEGER}
    forms: dict[str, dict[str, Any]] = {
        "int": _INTEGER,
        "float": {"anyOf": [{"type": "number"}, _EXPRESSION]},
        "bool": {"anyOf": [{"type": "boolean"}, {"type": "string", "description": "A param."}]},
        "name": {"anyOf": [{"enum": list(attribute.choices)}, {"type": "string", "description": "A param."}]},
        "ints": integers,
        "pair": {"anyOf": [*_INTEGER["anyOf"], integers]},
    }
    return {**forms[attribute.type], **description, **default}

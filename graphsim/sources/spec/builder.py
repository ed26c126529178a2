"""From the tables of a parsed spec to a forward graph: scopes, repeats, shape inference, tied parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from graphsim.core.graph import Graph, Op, Role, Tensor
from graphsim.errors import SpecError, UnknownNameError, suggest
from graphsim.sources.spec.expression import MAX_VALUE, Value, evaluate
from graphsim.sources.spec.fields import attribute_value, integer, reject_unknown, table_of, text_list
from graphsim.step.ops import kind_of
from graphsim.step.ops.kind import Kind, ShapeError, Signature
from graphsim.step.ops.tape import Type
from graphsim.units import ITEMSIZE, format_number

MAX_LAYERS = 20_000
MAX_DEPTH = 32
MAX_ELEMENTS = 2**44

LAYER_WORDS = ("op", "block", "from", "with", "name", "repeat", "frozen")
"""Keys of a layer that are not attributes of its op or arguments of its block."""


class _Scope:
    """Names visible to the layers of one block: params and arguments, and tensors by layer name."""

    def __init__(self, path: str, values: Mapping[str, Value], outer: _Scope | None, depth: int) -> None:
        self.path, self.values, self.outer, self.depth = path, values, outer, depth
        self.tensors: dict[str, tuple[str, ...]] = {}

    def find(self, name: str) -> tuple[str, ...] | None:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.tensors:
                return scope.tensors[name]
            scope = scope.outer
        return None

    def known(self) -> set[str]:
        return set(self.tensors) | (self.outer.known() if self.outer else set())


class Builder:
    """Builds the graph of one spec; *where* names it in errors, *overrides* are values for its params."""

    def __init__(self, data: dict[str, Any], where: str, overrides: Mapping[str, Value]) -> None:
        self.where = where
        reject_unknown(data, ("name", "about", "params", "inputs", "block", "model"), where, "section")
        self.name = data.get("name", Path(where).stem)
        if not isinstance(data.get("about", ""), str):
            raise SpecError("'about' must be a string", where)
        if not isinstance(self.name, str) or not 0 < len(self.name) <= 100:
            raise SpecError("'name' must be a short string", where)
        self.params = self._params(table_of(data, "params", where, optional=True), overrides)
        self.inputs = table_of(data, "inputs", where)
        self.blocks = table_of(data, "block", where, optional=True)
        for name in self.blocks:
            _check_name(name, f"{where}: [block]")
        self.model = table_of(data, "model", where)
        self.ops: list[Op] = []
        self.tensors: dict[str, Tensor] = {}
        self.frozen: list[str] = []
        self.layers_read = 0

    def build(self) -> Graph:
        """Return the forward graph; raise a `SpecError` that names the place of what is wrong."""
        root = _Scope("", self.params, None, 0)
        for name, entry in self.inputs.items():
            root.tensors[name] = (self._input(name, entry),)
        if not root.tensors:
            raise SpecError("[inputs] is empty: a model needs at least one", self.where)
        reject_unknown(self.model, ("layers", "outputs"), f"{self.where}: [model]", "key")
        last = self._layers(self.model, "[model]", root, next(iter(root.tensors.values())))
        outputs = [
            self._find(name, root, f"{self.where}: [model] outputs")[0]
            for name in text_list(self.model.get("outputs", []), f"{self.where}: [model] outputs")
        ]
        batch = self.params.get("batch")
        return Graph(
            self.ops,
            self.tensors.values(),
            outputs=list(dict.fromkeys([*(outputs or last)])),
            name=self.name,
            attributes={
                "params": dict(self.params),
                "batch": batch if isinstance(batch, int) else 1,
                "frozen": list(dict.fromkeys(self.frozen)),
            },
        )

    # -- sections ------------------------------------------------------------------------------

    def _params(self, table: Mapping[str, Any], overrides: Mapping[str, Value]) -> dict[str, Value]:
        where = f"{self.where}: [params]"
        params: dict[str, Value] = {}
        for name, value in table.items():
            if not name.isidentifier():
                raise SpecError(f"'{name[:60]}' cannot be used in expressions; use letters, digits and _", where)
            if not isinstance(value, int | float | bool | str):
                raise SpecError(f"'{name}' must be a number, true, false or a name, not {type(value).__name__}", where)
            params[name] = value
        for name, value in overrides.items():
            if name not in params:
                raise SpecError(f"no param '{name[:60]}' to set; {suggest(name, params)}", self.where)
            params[name] = _as_param(name, value, params[name], self.where)
        for name, number in params.items():
            if isinstance(number, int | float) and not abs(number) <= MAX_VALUE:
                raise SpecError(f"param '{name}' = {format_number(number)} is beyond any real model", where)
        return params

    def _input(self, name: str, entry: Any) -> str:
        where = f"{self.where}: [inputs] {name[:60]}"
        _check_name(name, where)
        if not isinstance(entry, dict):
            raise SpecError("an input is a table { shape = [...], dtype = ... }", where)
        reject_unknown(entry, ("shape", "dtype"), where, "key")
        shape = entry.get("shape")
        if not isinstance(shape, list) or len(shape) > 8:
            raise SpecError("'shape' must be a list of at most 8 extents", where)
        extents = tuple(integer(extent, self.params, where, "extent", minimum=1) for extent in shape)
        dtype = entry.get("dtype", "float32")
        if not isinstance(dtype, str) or dtype not in ITEMSIZE:
            raise SpecError(f"unknown dtype {dtype!r:.60}; {suggest(str(dtype), ITEMSIZE)}", where)
        self._add_tensor(Tensor(name, extents, dtype, Role.INPUT), where)
        return name

    # -- layers --------------------------------------------------------------------------------

    def _layers(
        self, table: Mapping[str, Any], title: str, scope: _Scope, previous: tuple[str, ...]
    ) -> tuple[str, ...]:
        layers = table.get("layers")
        where = self._at(scope, title)
        if not isinstance(layers, list) or not layers:
            raise SpecError("'layers' must be a list of at least one layer", where)
        for position, layer in enumerate(layers):
            entry = {"op": layer} if isinstance(layer, str) else layer
            if not isinstance(entry, dict):
                raise SpecError(f"layer {position} must be a name or a table, not {layer!r:.60}", where)
            previous = self._layer(entry, position, scope, previous)
        return previous

    def _layer(
        self, entry: Mapping[str, Any], position: int, scope: _Scope, previous: tuple[str, ...]
    ) -> tuple[str, ...]:
        what = [word for word in ("op", "block") if word in entry]
        here = self._at(scope, f"layer {position}")
        if len(what) != 1 or not isinstance(entry[what[0]], str):
            raise SpecError("a layer names either an 'op' or a 'block'", here)
        name = entry.get("name", f"{position}_{entry[what[0]]}"[:100])
        if not isinstance(name, str):
            raise SpecError(f"'name' must be a string, not {name!r:.60}", here)
        if "name" in entry:
            _check_name(name, here)
        here = self._at(scope, name)
        if name in scope.tensors:
            raise SpecError(f"the name '{name}' stands twice in this block", here)
        times = integer(entry.get("repeat", 1), scope.values, here, "repeat", minimum=0, maximum=MAX_LAYERS)
        numbered = "repeat" in entry
        for i in range(times):
            self.layers_read += 1
            if self.layers_read > 2 * MAX_LAYERS:
                raise SpecError(f"the model has more than {MAX_LAYERS} layers", here)
            again = {key: value for key, value in entry.items() if key != "from"}
            operands = self._operands(again if i else entry, scope, previous, here)
            path = ".".join(part for part in (scope.path, name, str(i) if numbered else "") if part)
            run = self._op if what[0] == "op" else self._block
            previous = run(entry, path, scope, operands)
        if not times:
            previous = self._operands(entry, scope, previous, here)[:1]
        scope.tensors[name] = previous
        return previous

    def _operands(
        self, entry: Mapping[str, Any], scope: _Scope, previous: tuple[str, ...], where: str
    ) -> tuple[str, ...]:
        first = previous
        if "from" in entry:
            if not isinstance(entry["from"], str):
                raise SpecError(f"'from' must name a layer, not {entry['from']!r:.60}", where)
            first = self._find(entry["from"], scope, where)
        others = [self._find(name, scope, where)[0] for name in text_list(entry.get("with", []), f"{where}: 'with'")]
        return (first[0], *others) if "from" in entry or others else first[:1]

    def _find(self, reference: str, scope: _Scope, where: str) -> tuple[str, ...]:
        """Return what *reference* names: a layer's outputs, or one of them (``split:2``)."""
        name, colon, number = reference.partition(":")
        found = scope.find(name)
        if found is None:
            raise SpecError(f"no layer or input '{name[:60]}' before this one; {suggest(name, scope.known())}", where)
        if not colon:
            return found
        if not (number.isdecimal() and len(number) < 10 and int(number) < len(found)):
            raise SpecError(f"'{reference[:60]}': '{name}' has outputs 0 ... {len(found) - 1}", where)
        return (found[int(number)],)

    def _block(self, entry: Mapping[str, Any], path: str, scope: _Scope, operands: tuple[str, ...]) -> tuple[str, ...]:
        where = f"{self.where}: {path}"
        block = self.blocks.get(entry["block"])
        if not isinstance(block, dict):
            raise SpecError(f"no block '{entry['block'][:60]}'; {suggest(entry['block'], self.blocks)}", where)
        if scope.depth >= MAX_DEPTH:
            raise SpecError(f"blocks nest more than {MAX_DEPTH} deep; does '{entry['block']}' contain itself?", where)
        declared = table_of(block, "args", f"{self.where}: [block.{entry['block']}]", optional=True)
        reject_unknown(block, ("layers", "args"), f"{self.where}: [block.{entry['block']}]", "key")
        given = {key: value for key, value in entry.items() if key not in LAYER_WORDS}
        reject_unknown(given, tuple(declared), where, f"argument of block '{entry['block']}'")
        values = dict(scope.values) if scope.depth == 0 else {**self.params}
        for key, default in declared.items():
            if key not in given and default == "required":
                raise SpecError(f"block '{entry['block']}' needs an argument '{key}'", where)
            values[key] = self._argument(given.get(key, default), scope.values if key in given else values, where)
        inner = _Scope(path, values, scope, scope.depth + 1)
        inner.tensors["input"] = operands[:1]
        for i, operand in enumerate(operands[1:], start=1):
            inner.tensors[f"input{i}"] = (operand,)
        return self._layers(block, f"[block.{entry['block']}]", inner, operands[:1])

    def _argument(self, value: Any, values: Mapping[str, Value], where: str) -> Value:
        if isinstance(value, str):
            return evaluate(value, values, where) if not value.isidentifier() or value in values else value
        if isinstance(value, int | float | bool):
            return value
        raise SpecError(f"an argument must be a number, true, false or a string, not {value!r:.60}", where)

    def _op(self, entry: Mapping[str, Any], path: str, scope: _Scope, operands: tuple[str, ...]) -> tuple[str, ...]:
        where = f"{self.where}: {path}"
        try:
            kind = kind_of(entry["op"])
        except UnknownNameError as error:
            hint = " (a block of that name exists: write block = ...)" if entry["op"] in self.blocks else ""
            raise SpecError(f"{error}{hint}", where) from None
        least, most = kind.operands
        if least == 0 and "from" not in entry and "with" not in entry:
            operands = ()
        if not least <= len(operands) <= most:
            count = str(least) if least == most else f"{least} to {most}"
            raise SpecError(
                f"'{kind.name}' takes {count} operands, not {len(operands)}; 'from' and 'with' name them", where
            )
        attributes = {a.name: attribute_value(a, entry.get(a.name), scope.values, where) for a in kind.attributes}
        signature = self._infer(kind, operands, attributes, where)
        owned = self._own(kind, entry, signature, path, where)
        return self._record(kind, path, operands, attributes, signature, owned)

    def _infer(self, kind: Kind, operands: Sequence[str], attributes: Mapping[str, Any], where: str) -> Signature:
        types = [Type(self.tensors[name].shape, self.tensors[name].dtype) for name in operands]
        try:
            return kind.infer(types, attributes)
        except ShapeError as error:
            raise SpecError(str(error), where) from None

    def _own(self, kind: Kind, entry: Mapping[str, Any], signature: Signature, path: str, where: str) -> dict[str, str]:
        """Create the layer's parameters and buffers, or tie them to another layer's."""
        tied = {p.name for p in signature.parameters if isinstance(entry.get(p.name), str)}
        known = [a.name for a in kind.attributes] + [*LAYER_WORDS] + [p.name for p in signature.parameters]
        reject_unknown(entry, known, where, f"attribute of '{kind.name}'")
        frozen = entry.get("frozen", False)
        if not isinstance(frozen, bool):
            raise SpecError(f"'frozen' must be true or false, not {frozen!r:.60}", where)
        owned = {}
        for parameter in signature.parameters:
            name = f"{path}.{parameter.name}"
            if parameter.name in tied:
                name = self._tie(str(entry[parameter.name]), parameter.shape, where)
            elif parameter.name in entry and parameter.name not in [a.name for a in kind.attributes]:
                raise SpecError(f"'{parameter.name}' ties to another layer's: a string is needed", where)
            else:
                tensor = Tensor(name, parameter.shape, parameter.dtype or "float32", parameter.role)
                self._add_tensor(tensor, where)
            if frozen:
                self.frozen.append(name)
            owned[parameter.name] = name
        return owned

    def _tie(self, name: str, shape: tuple[int, ...], where: str) -> str:
        other = self.tensors.get(name)
        if other is None or other.role not in (Role.PARAMETER, Role.BUFFER):
            names = [t.name for t in self.tensors.values() if t.role is Role.PARAMETER]
            raise SpecError(f"no parameter '{name[:60]}' to tie to; {suggest(name, names[:200])}", where)
        if other.shape != shape:
            raise SpecError(f"cannot tie to '{name}': its shape is {list(other.shape)}, not {list(shape)}", where)
        return name

    def _record(
        self,
        kind: Kind,
        path: str,
        operands: Sequence[str],
        attributes: Mapping[str, Any],
        signature: Signature,
        owned: dict[str, str],
    ) -> tuple[str, ...]:
        where = f"{self.where}: {path}"
        if len(self.ops) >= MAX_LAYERS:
            raise SpecError(f"the model has more than {MAX_LAYERS} layers", where)
        names = tuple(path if i == 0 else f"{path}:{i}" for i in range(len(signature.outputs)))
        for name, type_ in zip(names, signature.outputs, strict=True):
            self._add_tensor(Tensor(name, type_.shape, type_.dtype), where)
        self.ops.append(
            Op(
                name=path,
                kind=kind.name,
                inputs=(*operands, *owned.values()),
                outputs=names,
                layer=path,
                attributes={**attributes, "owned": owned},
            )
        )
        return names

    def _add_tensor(self, tensor: Tensor, where: str) -> None:
        if tensor.name in self.tensors:
            raise SpecError(f"the name '{tensor.name}' stands twice", where)
        if any(extent < 1 for extent in tensor.shape):
            raise SpecError(f"'{tensor.name}' would have shape {list(tensor.shape)}: every extent must be >= 1", where)
        if prod(tensor.shape) > MAX_ELEMENTS:
            raise SpecError(
                f"'{tensor.name}' would have {format_number(prod(tensor.shape))} elements, beyond any real model", where
            )
        self.tensors[tensor.name] = tensor

    def _at(self, scope: _Scope, place: str) -> str:
        return f"{self.where}: {scope.path}.{place}" if scope.path else f"{self.where}: {place}"


def _as_param(name: str, value: Value, default: Value, where: str) -> Value:
    """Return an override, if its type suits the default's."""
    wanted = type(default)
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        words = {int: "an integer", float: "a number", bool: "true or false", str: "a name"}
        raise SpecError(f"param '{name}' must be {words[wanted]}, not {value!r:.60}", where)
    if name in ("batch", "seq") and isinstance(value, int) and value < 1:
        raise SpecError(f"param '{name}' must be at least 1, not {format_number(value)}", where)
    return value


def _check_name(name: str, where: str) -> None:
    if not name or len(name) > 100 or not name.replace("_", "a").replace("-", "a").isalnum():
        raise SpecError(f"'{name[:60]}' is no name: use letters, digits, _ and -", where)

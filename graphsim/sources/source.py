"""Sources: what the user named, what kind of thing that is, and the graphs that follow from it.

A source is one of three kinds. A *model* is a forward graph, to which `training_step` adds backward and update. A
*capture* is a whole step, observed as PyTorch runs the user's own code. A *step* is a graph that is simulated as
it stands. Nothing else in graphsim looks at prefixes and suffixes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import PurePath
from typing import Any, Literal, NamedTuple

from graphsim.core.collector import uncollected
from graphsim.core.graph import Graph, Op, Phase
from graphsim.errors import UsageError, suggest
from graphsim.registry import Registry, imported
from graphsim.sources.spec.expression import Value
from graphsim.step.ops import find_kind
from graphsim.step.training import Training, training_step

Kind = Literal["model", "capture", "step"]


class Steps(NamedTuple):
    """Step 1, which creates the optimizer states, and any later one; the same graph where there is no update."""

    first: Graph
    steady: Graph

    def step(self, *, first: bool) -> Graph:
        """Return step 1 if *first*, else a later one."""
        return self.first if first else self.steady


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontend:
    """What reads one kind of source. Functions are given as ``module:function``, imported when needed, or as such.

    Attributes:
        kind: what it makes: 'model', 'capture', or 'graph' (a step as it stands, or a model where its ops are ours).
        load: ``(source, **params) -> Graph``; of a capture, the steady step.
        prefix: of the sources it reads, ``torch:``; empty: none.
        suffixes: of the files it reads, ``.onnx``.
        steps: of a capture: ``(source, *, training, **params)``, which returns step 1 and the steady step as the
            `Training` says, captured once.
        takes: ``(source, name) -> bool``: whether it takes a param; empty: those of the graph's attribute ``params``.
        stamp: ``(source) -> bytes``: what tells two states of the source apart; empty: the bytes of the file.
        read: ``(source) -> object``: its content, which can be sent elsewhere and is taken in the source's place.
        untrained: params that a mode without training implies.
        files: what it reads, in words, for help texts.
    """

    kind: Literal["model", "capture", "graph"]
    load: str | Callable[..., Graph]
    prefix: str = ""
    suffixes: tuple[str, ...] = ()
    steps: str | Callable[..., tuple[Graph, Graph]] = ""
    takes: str | Callable[[Any, str], bool] = ""
    stamp: str | Callable[[Any], bytes] = ""
    read: str | Callable[[Any], Any] = ""
    untrained: Mapping[str, Value] = field(default_factory=dict)
    files: str = ""


def _itself(graph: Graph) -> Graph:
    return graph


def _steady(steps: Steps) -> Graph:
    return steps.steady


GRAPHS = Frontend(kind="graph", load=_itself, files="a Graph")
PAIRS = Frontend(kind="graph", load=_steady, files="the two steps of a training")

FRONTENDS: Registry[Frontend] = Registry(
    "frontends",
    "frontend",
    {
        "spec": Frontend(
            kind="model",
            load="graphsim.sources.spec:load_spec",
            suffixes=(".toml",),
            takes="graphsim.sources.spec:takes",
            read="graphsim.sources.spec:spec_text",
            stamp="graphsim.sources.spec:stamp",
            files="a shipped spec's name or a spec file",
        ),
        "torch": Frontend(
            kind="capture",
            load="graphsim.sources.torch:load_torch",
            prefix="torch:",
            steps="graphsim.sources.torch:load_steps",
            takes="graphsim.sources.torch.source:takes",
            stamp="graphsim.sources.torch.source:stamp",
            files="torch:module:function, your own model",
        ),
        "module": Frontend(
            kind="capture",
            load="graphsim.sources.torch.module:load_module",
            steps="graphsim.sources.torch.module:load_steps",
            files="an nn.Module and its inputs",
        ),
        "hf": Frontend(
            kind="capture",
            load="graphsim.sources.hf:load_hf",
            prefix="hf:",
            steps="graphsim.sources.hf:load_steps",
            takes="graphsim.sources.hf:takes",
            stamp="graphsim.sources.hf:stamp",
            files="hf:config.json",
        ),
        "onnx": Frontend(
            kind="model",
            load="graphsim.sources.onnx:load_onnx",
            suffixes=(".onnx",),
            takes="graphsim.sources.onnx:takes",
            untrained={"loss": "none"},
            files="an .onnx file",
        ),
        "json": Frontend(
            kind="graph",
            load="graphsim.sources.json:load_json",
            suffixes=(".json",),
            files="a graph's .json file (ours, or networkx node-link with 'bytes' and 'time')",
        ),
        "dtr": Frontend(
            kind="graph",
            load="graphsim.sources.dtr:load_dtr",
            suffixes=(".log", ".jsonl"),
            takes="graphsim.sources.dtr:takes",
            files="a DTR log (.log, .jsonl)",
        ),
        "layered": Frontend(
            kind="graph",
            load="graphsim.sources.layered:load_layered",
            prefix="layered:",
            takes="graphsim.sources.layered:takes",
            files="layered:250, a random graph of so many nodes",
        ),
        "networkx": Frontend(kind="graph", load=Graph.from_networkx, files="a networkx DAG"),
        "graph": GRAPHS,
        "steps": PAIRS,
    },
)
"""What can be read: a line each. Other packages add a `Frontend` by an entry point of the group graphsim.frontends."""


_OPEN: dict[str, tuple[tuple[str, ...], str]] = {
    "capture": (
        tuple(f.name for f in fields(Training) if f.name != "master_weights"),
        "your optimizer keeps the copies that it needs",
    ),
    "step": (("target", "device"), "it is a step as it stands, to which nothing is added"),
}
"""What a training may say of each kind that is no model of ours, and why nothing else."""


@dataclass(frozen=True, eq=False)
class Source:
    """Something that a user named, with params set: a spec, a model, a file, a graph.

    Attributes:
        what: the name, or the object itself.
        frontend: what reads it.
        params: values that are set, such as ``batch``.
    """

    what: Any
    frontend: Frontend
    params: Mapping[str, Value] = field(default_factory=dict)
    _made: dict[Training, Steps] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return self.what if isinstance(self.what, str) else str(getattr(self.what, "name", type(self.what).__name__))

    def __repr__(self) -> str:
        params = "".join(f", {name}={value!r}" for name, value in self.params.items())
        return f"Source({self.name}{params})"

    @cached_property
    def kind(self) -> Kind:
        """What it is; a graph is a model if it is a forward graph of our op kinds."""
        if self.frontend.kind != "graph":
            return self.frontend.kind
        return "model" if _is_forward(self.graph) else "step"

    @cached_property
    def graph(self) -> Graph:
        """What its frontend makes of it: a forward graph, or a step.

        Raises:
            GraphSimError: the source is wrong; the message says where.
        """
        if self.params and not self.frontend.takes and self.frontend.kind == "graph":
            raise UsageError(f"{self.name} is a graph as it stands: it has no params to set")
        made: Graph = imported(self.frontend.load)(self.what, **self.params)
        return made

    def takes(self, name: str) -> bool:
        """Whether a param *name* can be set."""
        if self.frontend.takes:
            return bool(imported(self.frontend.takes)(self.what, name))
        return False

    def with_params(self, **params: Value) -> Source:
        """Return it with these *params* set too."""
        return Source(self.what, self.frontend, {**self.params, **params})

    def get(self, name: str) -> Value | None:
        """Return the value of a param, as set or as the model has it; None if it has none."""
        if name in self.params or self.frontend.kind == "capture":
            return self.params.get(name)
        found: Value | None = dict(self.graph.attributes.get("params", {})).get(name)
        return found

    def forward(self, mode: str = "train") -> Graph:
        """Return the forward graph of a model, to be run in *mode* (see `Training`).

        Raises:
            UsageError: it is no model.
        """
        if self.kind != "model":
            raise UsageError(f"{self.name} is a whole step, not a model")
        untrained = {} if mode == "train" else self.frontend.untrained
        return Source(self.what, self.frontend, {**untrained, **self.params}).graph if untrained else self.graph

    @uncollected()
    def steps(self, training: Training | None = None) -> Steps:
        """Return step 1 and the steady step, trained as *training* says; at most three micro-batches are written out.

        Raises:
            UsageError: the training asks for what the source decides.
            GraphSimError: the source is wrong, or cannot be trained.
        """
        training = (training or Training()).shortened
        if training not in self._made:
            for other in list(self._made)[1:]:  # a step may be large; what is asked first is asked again
                del self._made[other]
            self._made[training] = self._steps(training)
        return self._made[training]

    def _steps(self, training: Training) -> Steps:
        if self.kind == "model":
            graph = self.forward(training.mode)
            steady = training_step(graph, training)
            return Steps(training_step(graph, training, first=True) if training.mode == "train" else steady, steady)
        self.check(training)
        if self.kind == "step":
            return self.what if isinstance(self.what, Steps) else Steps(self.graph, self.graph)
        return Steps(*imported(self.frontend.steps)(self.what, training=training, **self.params))

    def check(self, training: Training) -> None:
        """Check that *training* says only what can be said of this kind of source.

        Raises:
            UsageError: it asks for something that is decided already.
        """
        if self.kind == "model":
            return
        training.check(self.name, *_OPEN[self.kind])

    def stamp(self) -> bytes:
        """Return what tells two states of the source apart."""
        if self.frontend.stamp:
            return bytes(imported(self.frontend.stamp)(self.what))
        if isinstance(self.what, str) and not self.frontend.prefix and self.frontend.suffixes:
            from pathlib import Path

            return Path(self.what).read_bytes()
        return repr(self.what).encode()

    def pinned(self) -> Source:
        """Return it with its content read, so that it stays what it is and can go to another machine.

        Raises:
            GraphSimError: it cannot be read.
        """
        return replace(self, what=imported(self.frontend.read)(self.what)) if self.frontend.read else self


def source_of(what: Any, inputs: Any = None, **params: Value) -> Source:
    """Return the `Source` that *what* is.

    Args:
        what: a name such as ``gpt2``, ``my.toml``, ``torch:package.module:function``, ``hf:config.json``, ``m.onnx``,
            ``graph.json``, ``layered:250``, or what a prefix or suffix of another package's frontend names; or a
            `Graph`, the `Steps` of a training, a networkx DAG, an ``nn.Module`` (or a function that makes one) with
            *inputs*, or a `Source`.
        inputs: the batch of a module.
        params: values to set.

    Raises:
        UsageError: it is nothing that can be read.
    """
    set_params = {name: value for name, value in params.items() if value is not None}
    if isinstance(what, Source):
        return what.with_params(**set_params) if set_params else what
    if inputs is not None:
        from graphsim.sources.torch.module import Module

        what = Module(what, inputs)
    return Source(str(what) if isinstance(what, PurePath) else what, _frontend_of(what), set_params)


def _frontend_of(what: Any) -> Frontend:
    if isinstance(what, Graph | Steps):
        return GRAPHS if isinstance(what, Graph) else PAIRS
    if hasattr(what, "adj") and hasattr(what, "nodes"):
        return FRONTENDS["networkx"]
    if isinstance(what, str | PurePath):
        return _named(str(what))
    if hasattr(what, "frontend"):  # a value that is made to be a source
        return FRONTENDS[what.frontend]
    if hasattr(what, "named_parameters"):
        raise UsageError(f"{type(what).__name__} is a module: give its inputs too: gs.peak(model, batch)")
    raise UsageError(
        f"{type(what).__name__} is no source: give a name, a Graph, a networkx DAG, a module and its inputs"
    )


def _named(text: str) -> Frontend:
    """Return the frontend whose prefix or suffix *text* has: ours first; a spec where there is none."""
    if not text.strip():
        raise UsageError("no such file or spec: the source has no name")
    suffix = PurePath(text).suffix.lower()

    def reads(frontend: Frontend) -> bool:
        return text.startswith(frontend.prefix) if frontend.prefix else suffix in frontend.suffixes

    for name in FRONTENDS.ours():
        if reads(FRONTENDS[name]):
            return FRONTENDS[name]
    if ":" in text or suffix:  # not the name of a shipped spec
        for name in FRONTENDS.others():
            if reads(FRONTENDS[name]):
                return FRONTENDS[name]
    prefixes = [frontend.prefix for frontend in map(FRONTENDS.__getitem__, FRONTENDS) if frontend.prefix]
    start, colon, rest = text.partition(":")
    if colon and all(part.isidentifier() for part in (*start.split("."), *rest.split("."))):
        raise UsageError(f"'{text[:80]}' is no source; did you mean torch:{text[:80]}? Prefixes: {' '.join(prefixes)}")
    if colon and start.isidentifier():
        raise UsageError(f"'{text[:80]}' is no source; {suggest(start + ':', prefixes)}")
    return FRONTENDS["spec"]


def _is_forward(graph: Graph) -> bool:
    """Whether *graph* is a forward graph of our op kinds, and no step: each op has the attributes of its kind."""
    plain = "training" not in graph.attributes and "captured" not in graph.attributes
    return plain and bool(graph.ops) and all(op.phase is Phase.FORWARD and _is_whole(op) for op in graph.ops)


def _is_whole(op: Op) -> bool:
    kind = find_kind(op.kind)
    return kind is not None and all(attribute.name in op.attributes for attribute in kind.attributes)


def load(source: Any, **params: Value) -> Graph:
    """Return the graph of *source*: a model's forward graph, the steady step of a capture, a graph as it stands.

    Args:
        source: as `source_of` takes it: ``gpt2``, ``my.toml``, ``torch:module:function``, ``graph.json``, ...
        params: values for a spec's ``[params]``, for instance ``batch=8``; ``mutations`` of a log; ``seed`` and
            ``width`` of a layered graph.

    Raises:
        SpecError, GraphError, UsageError: the source is wrong; the message says where.
    """
    return source_of(source, **params).graph

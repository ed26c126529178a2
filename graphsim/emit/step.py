"""A plan as a file of plain PyTorch: forward and backward pass, call by call, in the order of any schedule.

What is written are the calls into ATen of the captured step, with the model's tensors by their paths; a name is deleted
after the last call that reads it. These are the calls of PyTorch's own eager step, so gradients are equal to the bit:
random ops that run again draw the same numbers, batch norm that runs again leaves the running statistics alone. The
file is verified by a capture of the model trained by it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from graphsim.core.graph import Graph, Op, Phase
from graphsim.core.simulation import simulate
from graphsim.emit.capture import Recapturable
from graphsim.emit.program import UNSEEN, Place, Program
from graphsim.emit.script import Execution, Script, executions
from graphsim.errors import GraphSimError, UsageError
from graphsim.recompute.plan import Plan
from graphsim.units import format_bytes
from graphsim.version import __version__

TOLERANCE = 1.02
"""What the captured peak may be, of the plan's."""

_HEAD = '''\
"""{title}

In place of the forward and backward pass, once the gradients are reset:

    import {module}

    loss = {module}.step(model, {inputs})

Gradients, loss, buffers and random numbers are those of the model's own pass, to the bit. The model's code does not
run, nor do hooks of its modules.

{facts}
"""

import functools

import torch

aten = torch.ops.aten

# Of the model: shape, strides and dtype of each tensor that is read or gets a gradient.
TENSORS = {{
{tensors}
}}
# Of the batch: shape, strides and dtype.
INPUTS = {{
{shapes}
}}
GRADIENTS = (
{gradients}
)
EVALUATING = {evaluating}  # modules in eval mode


@torch.no_grad()
@torch.autocast("{device}", enabled=False)
def step(model, {names}):
    """Return the loss, and leave gradients in the parameters, which must have none."""
    p = _tensors(model, {names})
{body}


def _tensors(model, {names}):
    """Return the tensors of *model* by path, checked: these calls are for no others."""
    p = {{path: functools.reduce(getattr, path.split("."), model) for path in TENSORS}}
    given = dict(zip(INPUTS, ({names},)))
    for known, tensors in ((TENSORS, p), (INPUTS, given)):
        for name, tensor in tensors.items():
            lies = tuple(tensor.shape), tensor.stride(), tensor.dtype
            if lies != known[name]:
                raise ValueError(f"{{name}} is {{lies}}, planned for {{known[name]}}")
    evaluating = tuple(path for path, module in model.named_modules() if not module.training)
    if evaluating != EVALUATING:
        raise ValueError("the model is not in the mode in which it was captured: see train() and eval()")
    for path in GRADIENTS:
        if p[path].grad is not None:
            raise ValueError(f"parameter {{path}} has a gradient: call zero_grad() before")
    return p
'''

_VIEW = '''\
def _view(tensor, size, stride, shift=0):
    """Return a tensor over the memory of *tensor*, from *shift* elements on."""
    return torch.as_strided(tensor, size, stride, tensor.storage_offset() + shift)
'''

_VIEW_AS = '''\
def _view_as(tensor, size, stride, shift, dtype):
    """Return a tensor of *dtype* over the memory of *tensor*, from *shift* of its elements on."""
    whole = tensor.untyped_storage().nbytes() // tensor.element_size()
    flat = torch.as_strided(tensor, (whole,), (1,), 0).view(dtype)
    begin = tensor.storage_offset() * tensor.element_size() // flat.element_size()
    return torch.as_strided(flat, size, stride, begin + shift)
'''

_RANDOM = '''\
def _states(device):
    """Return the states of the random generators."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _drawn_again(states, device, call, *args, **options):
    """Return what *call* returns when the random generators are in *states*, and leave them as they are."""
    present = _states(device)
    try:
        _set_states(states, device)
        return call(*args, **options)
    finally:
        _set_states(present, device)


def _set_states(states, device):
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
'''


@dataclass(frozen=True)
class EmittedStep:
    """A file to train a model by, and what the step then is.

    Attributes:
        text: the file.
        plan: what it does.
        stored_peak: bytes at the peak of the step as it is.
        verified_peak: bytes at the peak of the captured step of the model trained by the file.
        again: how many ops of each kind run again.
    """

    text: str
    plan: Plan
    stored_peak: int
    verified_peak: int
    again: Mapping[str, int]


def emit_step(captured: Recapturable, plan: Plan, *, module: str = "planned") -> EmittedStep:
    """Return *plan*, one of the steady step of *captured*, as a file that is called *module*.

    Raises:
        UsageError: the step cannot be made again by the same calls, or the plan changes what the optimizer does.
        GraphSimError: the captured peak is more than 2 % above the plan's, or other ops run again.
    """
    if plan.schedule.offloads:
        raise UsageError("the plan offloads to the host, which no step is written with yet: plan without --offload")
    program, graph = captured.program, captured.graph
    made = executions(program, graph, plan.schedule)
    stored = simulate(graph).peak
    text = render(program, made, module=module, title=_title(captured), facts=_facts(graph, plan, stored))
    again = Counter(graph.ops[one.number].kind for one in made if one.again)
    trained = captured.trained_by(text)
    verified = simulate(trained).peak
    if verified > TOLERANCE * plan.peak_bytes:
        raise GraphSimError(
            f"the step that was written peaks at {verified:,} bytes, more than 2 % above the plan's "
            f"{plan.peak_bytes:,}: this is a defect of graphsim"
        )
    _check_calls(captured, made, trained)
    return EmittedStep(text, plan, stored, verified, again)


def _check_calls(captured: Recapturable, made: Sequence[Execution], trained: Graph) -> None:
    """Check that the captured step runs the ops of *made*, each as often; views take no part."""
    planned = Counter(captured.graph.ops[one.number].kind.removesuffix("_") for one in made)
    planned["clone"] += sum(len(one.line.call.statistics) for one in made if one.again)
    if captured.program.on_gpu:  # whose random states are copied to tensors
        planned["empty"] += sum(one.line.call.random and (one.again or one.repeated) for one in made)
    written = Counter(op.kind.removesuffix("_") for op in trained.ops if _counts(trained, op))
    if planned - written or written - planned:
        differing = ", ".join(f"{kind} {written[kind] - n:+}" for kind, n in planned.items() if written[kind] != n)
        raise GraphSimError(
            f"the step that was written runs other ops than the plan ({differing}): a defect of graphsim"
        )


def _counts(graph: Graph, op: Op) -> bool:
    views = op.outputs and not op.mutates and all(graph.tensors[name].storage for name in op.outputs)
    return op.kind not in UNSEEN and op.phase is not Phase.OPTIMIZER and not views


def render(
    program: Program, made: Sequence[Execution], *, module: str, title: str, facts: Sequence[tuple[str, str]]
) -> str:
    """Return the file.

    Args:
        program: of the captured step.
        made: its executions.
        module: how the file is called, without the suffix.
        title: what it is, on one line.
        facts: lines of the docstring: name and text.
    """
    script = Script.of(program, made)
    lines = list(_body(program, script, made))
    wide = max((len(name) for name, _ in facts), default=0)
    names = ", ".join(program.inputs)
    read = {place.storage for one in made for place in one.line.inputs}
    named = {path: place for path, place in program.named.items() if path in program.gradients or place.storage in read}
    text = _HEAD.format(
        title=title.replace("\\", "/").replace('"', "'"),
        module=module,
        inputs=names,
        names=names,
        facts="\n".join(f"    {name:<{wide}}  {fact}" for name, fact in facts),
        tensors=_lying(named),
        shapes=_lying(program.inputs),
        gradients="\n".join(f"    {json.dumps(path)}," for path in program.gradients),
        evaluating=f"({''.join(f'{json.dumps(path)}, ' for path in program.evaluating)})",
        device="cuda" if program.on_gpu else "cpu",
        body="\n".join(f"    {line}" if line else "" for line in lines),
    )
    return _with_helpers(text)


def _body(program: Program, script: Script, made: Sequence[Execution]) -> Iterator[str]:
    lines = list(script.body(made))
    if any("device" in line for line in lines):
        yield f"device = {next(iter(program.inputs), 'next(model.parameters())')}.device"
    yield from lines
    for path, place in program.gradients.items():
        yield f'p["{path}"].grad = {script.tensor(place)}'
    yield f"return {script.tensor(program.loss)}"


def _lying(places: Mapping[str, Place]) -> str:
    rows = ((path, place.geometry) for path, place in places.items())
    return "\n".join(f"    {json.dumps(path)}: ({tuple(g[0])}, {tuple(g[1])}, {g[3]})," for path, g in rows)


def _with_helpers(text: str) -> str:
    helpers = [
        helper for name, helper in (("_view(", _VIEW), ("_view_as(", _VIEW_AS), ("_states(", _RANDOM)) if name in text
    ]
    return "\n\n".join([text, *helpers])


def _title(captured: Recapturable) -> str:
    return f"A training step of {captured.name} by a plan, written by graphsim {__version__}."


def _facts(graph: Graph, plan: Plan, stored: int) -> list[tuple[str, str]]:
    training = graph.attributes.get("training") or {}
    return [
        ("strategy", plan.strategy),
        ("step", ", ".join(str(training[k]) for k in ("optimizer", "optimizer_impl", "target") if k in training)),
        ("peak", f"{plan.peak_bytes:,} bytes ({format_bytes(plan.peak_bytes)}), live tensors of a steady step"),
        ("without", f"{stored:,} bytes ({format_bytes(stored)})"),
        ("extra work", f"{plan.overhead:+.2%} of the step's op costs"),
    ]

"""The file that is written: plain PyTorch, without graphsim."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence

Wrapped = Mapping[str, tuple[str, ...]]
"""By module path, the ops whose results are stored when the module runs again: their kind and how many of that kind
come before it in the module, as in ``addmm:1``."""

_IMPORTS = """\
import functools

import torch
from torch.utils.checkpoint import {names}
"""

_APPLY = '''\
def apply(model):
    """Make each of these modules of *model* recompute in the backward pass, and return *model*.

    Parameters, names, the state dict and all results stay as they are.
    """
    for path in MODULES:
        module = model.get_submodule(path)
        if not getattr(module, "recomputes_in_backward", False):
            module.__class__ = _recomputing(type(module){path})
    return model


@functools.cache
def _recomputing(kind{path}):
    class Recomputing(kind):
        recomputes_in_backward = True

        def forward(self, *args, **kwargs):
            if not torch.is_grad_enabled():
                return super().forward(*args, **kwargs)
            options = {{{options}}}
            return checkpoint(super().forward, *args, **options, **kwargs)

    Recomputing.__name__, Recomputing.__qualname__ = kind.__name__, kind.__qualname__
    return Recomputing
'''

_POLICY = '''\
def _policy(saved):
    """Return the contexts of one call: the results of ops in *saved* are stored, other ops run again."""
    counts = {False: {}, True: {}}

    def choose(ctx, op, *args, **kwargs):
        count = counts[ctx.is_recompute]
        kind = op._schema.name.removeprefix("aten::")
        count[kind] = count.get(kind, -1) + 1
        stored = f"{kind}:{count[kind]}" in saved
        return CheckpointPolicy.MUST_SAVE if stored else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(choose)
'''

_STATISTICS = '''\
@contextlib.contextmanager
def _statistics_stay(module, context):
    """Running statistics are updated once: not when the forward pass runs again, inside *context*."""
    norms = [m for m in module.modules() if getattr(m, "track_running_stats", False) and m.training]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        with context:
            yield
    finally:
        for norm, (momentum, batches) in zip(norms, before):
            norm.momentum, norm.num_batches_tracked = momentum, batches
'''

_CONTEXTS = '''\
def _contexts(module{path}):
    """Return what surrounds a module the first time, and when it runs again."""
    first, again = {both}
    return first, {again}
'''

_PLAIN = "contextlib.nullcontext(), contextlib.nullcontext()"


def render(wrapped: Wrapped, *, title: str, facts: Sequence[tuple[str, str]], statistics: bool, random: bool) -> str:
    """Return the file.

    Args:
        wrapped: what to recompute.
        title: what it is a plan for, on one line.
        facts: lines of the docstring: name and text.
        statistics: whether a wrapped module has running statistics.
        random: whether a wrapped module may draw random numbers.
    """
    policies = any(wrapped.values())
    parts = [_docstring(title, facts), _imports(policies, statistics).rstrip(), _modules(wrapped, policies)]
    path = ", path" if policies else ""
    surrounded = policies or statistics
    options = {"use_reentrant": "False", "preserve_rng_state": str(random)}
    options |= {"context_fn": f"lambda: _contexts(self{path})"} if surrounded else {}
    listed = ", ".join(f'"{name}": {value}' for name, value in options.items())
    parts.append("\n" + _APPLY.format(path=path, options=listed))
    if surrounded:
        both = f"_policy(MODULES[path]) if MODULES[path] else ({_PLAIN})" if policies else _PLAIN
        again = "_statistics_stay(module, again)" if statistics else "again"
        parts.append("\n" + _CONTEXTS.format(path=path, both=both, again=again))
    parts += ["\n" + _POLICY] * policies + ["\n" + _STATISTICS] * statistics
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _docstring(title: str, facts: Sequence[tuple[str, str]]) -> str:
    wide = max((len(name) for name, _ in facts), default=0)
    lines = [f"    {name:<{wide}}  {text}" for name, text in facts]
    usage = "Use: `import checkpoint_plan; checkpoint_plan.apply(model)`, once, before training."
    safe = title.replace("\\", "/").replace('"', "'")
    return "\n".join([f'"""{safe}', "", usage, "", *lines, '"""'])


def _imports(policies: bool, statistics: bool) -> str:
    names = ["CheckpointPolicy", "checkpoint", "create_selective_checkpoint_contexts"] if policies else ["checkpoint"]
    return "import contextlib\n" * (policies or statistics) + _IMPORTS.format(names=", ".join(names))


def _modules(wrapped: Wrapped, policies: bool) -> str:
    if not wrapped:
        return "MODULES = ()"
    if not policies:
        return "\n".join(["MODULES = (", *(f"    {json.dumps(path)}," for path in wrapped), ")"])
    lines = ["# Of each module, the ops whose results are stored; the others run again.", "MODULES = {"]
    for path, saved in wrapped.items():
        rows = textwrap.wrap(" ".join(f"{json.dumps(name)}," for name in saved), 100)
        if len(rows) <= 1:
            lines.append(f"    {json.dumps(path)}: ({''.join(rows)}),")
        else:
            lines += [f"    {json.dumps(path)}: (", *(f"        {row}" for row in rows), "    ),"]
    return "\n".join([*lines, "}"])

"""Every op that training can reach, captured for CUDA: which captures fail, and whether two builds say the same.

    python bench/op_sweep.py SWEEP.jsonl [--only NAME ...] [--samples 6] [--card "A100-SXM4-80GB"]
    python bench/op_sweep.py --compare ONE.jsonl OTHER.jsonl

Runs the samples that PyTorch tests its ops with (torch.testing._internal.common_methods_invocations.op_db), forward and
backward, in float32 and bfloat16, under a capture for a GPU that is not there: those that CUDA knows, that can be
differentiated and whose sample runs on the CPU for real. Float operands have no known values, as activations of a step
have none. Each op runs in a process that may die: it is named, and the next one goes on. A line of SWEEP for each op
and dtype: `failures` (sample, what was raised), `refusals` (errors of graphsim), and `ops`: kind, phase, bytes of
scratch and of new results of all that was captured. `--compare` says where two files differ, of a CPU and a CUDA build.
Exits with 1 where something failed. Needs PyTorch and its test dependency expecttest.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import random
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DTYPES = ("float32", "bfloat16")
SECONDS = 300.0
"""An op may take."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "sweep", type=Path, nargs="*", help="the file that is written; with --compare the two to compare"
    )
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--only", nargs="*", default=[], help="names of ops")
    parser.add_argument("--samples", type=int, default=6, help="of each op and dtype, at most")
    parser.add_argument("--card", default="A100-SXM4-80GB")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)  # the number of the op to begin with
    options = parser.parse_args()
    if options.child is not None:
        for line in swept(options.child, options.only, options.samples, options.card):
            print(json.dumps(line), flush=True)
        return 0
    if options.compare:
        differences = list(compared(*(list(read(path)) for path in options.sweep)))
        print("\n".join([*differences, f"{len(differences)} ops differ"]))
        return int(bool(differences))
    (path,) = options.sweep
    with path.open("w") as file:
        for line in surviving(sys.argv[1:]):
            file.write(json.dumps(line) + "\n")
            file.flush()
    print("\n".join(summary(list(read(path)))))
    return int(any(line["failures"] for line in read(path)))


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a sweep."""
    with path.open() as file:
        yield from map(json.loads, file)


def surviving(arguments: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the lines of all ops, each process going on after the op in which the one before it died."""
    begin = 0
    while True:
        command = [sys.executable, __file__, *arguments, "--child", str(begin)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            running: dict[str, Any] = {}
            for text in child.stdout or ():
                line = json.loads(text)
                if "begins" in line:
                    running = line
                    continue
                running = {}
                yield line
        if not child.returncode:
            return
        if not running:
            raise RuntimeError(f"a sweep ended with {child.returncode} between ops")
        died = f"the interpreter died with {child.returncode}"
        yield {
            "op": running["op"],
            "dtype": running["dtype"],
            "failures": [[running["op"], died]],
            "refusals": [],
            "ops": [],
        }
        begin = running["begins"] + 1


def swept(begin: int, only: list[str], samples: int, card: str) -> Iterator[dict[str, Any]]:
    """Yield two lines for each op and dtype from number *begin* on: that it begins, and what was found."""
    from graphsim.core.devices import find_device

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    device, ops = find_device(card), list(_ops(only))
    gc.collect()
    gc.freeze()  # a capture collects garbage, and nothing of this is
    for number, (op, dtype) in enumerate(ops):
        if number < begin:
            continue
        named = {"op": op.full_name, "dtype": str(dtype).removeprefix("torch.")}
        yield {**named, "begins": number}
        calls = list(_samples(op, dtype, samples))
        yield {**named, "samples": len(calls), **_captured(op, calls, device)}


def _ops(only: list[str]) -> Iterator[tuple[Any, Any]]:
    import torch
    from torch.testing._internal.common_methods_invocations import op_db

    for op in op_db:
        for name in DTYPES:
            dtype = getattr(torch, name)
            if (not only or op.name in only) and op.supports_autograd and dtype in op.supported_dtypes("cuda"):
                yield op, dtype


def _samples(op: Any, dtype: Any, most: int) -> Iterator[Any]:
    """Yield samples, spread over all that there are, that run on the CPU."""
    import numpy
    import torch

    torch.manual_seed(0)
    random.seed(0)
    numpy.random.seed(0)  # noqa: NPY002  -- what the samples draw from
    found = list(op.sample_inputs(torch.device("cpu"), dtype, requires_grad=True))
    for sample in found[:: max(1, len(found) // most)][:most]:
        try:
            _differentiate(op, sample, lambda tensor: tensor.detach().clone().requires_grad_(tensor.requires_grad))
        except Exception:  # what does not run at all says nothing
            continue
        yield sample


def _differentiate(op: Any, sample: Any, convert: Callable[[Any], Any]) -> None:
    """Run *op* on what *convert* makes of a sample's tensors, and its backward."""
    import torch
    from torch.utils._pytree import tree_leaves, tree_map_only

    x, args, kwargs = tree_map_only(torch.Tensor, convert, (sample.input, sample.args, sample.kwargs))
    result = op(x, *args, **kwargs)
    outputs = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor) and t.requires_grad]
    if outputs:
        torch.autograd.backward(outputs, [torch.empty_like(t) for t in outputs])


def _captured(op: Any, samples: list[Any], device: Any) -> dict[str, Any]:
    """Return what became of the samples, each of them a part of one captured step."""
    import torch
    from torch import nn

    from graphsim.errors import GraphSimError
    from graphsim.sources.torch.capture import capture

    failures: list[tuple[int, str]] = []
    refusals: list[tuple[int, str]] = []

    def convert(tensor: Any) -> Any:
        if not tensor.is_floating_point():
            return tensor.to("cuda")
        if tensor.layout != torch.strided:
            return tensor.detach().to("cuda").requires_grad_(tensor.requires_grad)
        there = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")
        return there.requires_grad_(tensor.requires_grad)

    def step(*_: Any) -> None:
        for number, sample in enumerate(samples):
            try:
                _differentiate(op, sample, convert)
            except GraphSimError as error:
                refusals.append((number, str(error)))
            except Exception as error:
                failures.append((number, f"{type(error).__name__}: {error}"[:400]))

    try:
        made = capture(nn.Identity(), torch.zeros(0), optimizer=None, loss=None, step=step, device=device)
    except Exception as error:  # after the samples
        kind = refusals if isinstance(error, GraphSimError) else failures
        kind.append((len(samples), f"{type(error).__name__}: {error}"[:400]))
        return {"failures": failures, "refusals": refusals, "ops": [], "notes": []}
    graph = made.graph()
    ops = [
        [
            one.kind,
            str(one.phase),
            one.workspace,
            [graph.tensors[t].nbytes for t in one.outputs if not graph.tensors[t].storage],
        ]
        for one in graph.ops
    ]
    return {"failures": failures, "refusals": refusals, "ops": ops, "notes": graph.attributes["warnings"]}


# -- what was found --------------------------------------------------------------------------------


def compared(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> Iterator[str]:
    """Yield where two sweeps differ: what only one has, what failed, or the first op that was captured otherwise."""
    both = [{(line["op"], line["dtype"]): line for line in side} for side in (one, other)]
    for key in sorted(both[0].keys() ^ both[1].keys()):
        yield f"{' '.join(key)}: in one sweep only"
    for key in sorted(both[0].keys() & both[1].keys()):
        a, b = (side[key] for side in both)
        for column in ("samples", "failures", "refusals"):
            if a.get(column) != b.get(column):
                yield f"{' '.join(key)}: {column} {a.get(column)} and {b.get(column)}"
                break
        else:
            pairs = zip(a["ops"], b["ops"], strict=False)
            first = next(((x, y) for x, y in pairs if x != y), None)
            if first or len(a["ops"]) != len(b["ops"]):
                yield f"{' '.join(key)}: {first or 'one has more ops'}"


def summary(lines: list[dict[str, Any]]) -> Iterator[str]:
    """Yield failures and refusals, each reason with how many ops it concerns, and the figures."""
    for column in ("failures", "refusals"):
        reasons: dict[str, set[str]] = {}
        for line in lines:
            for _, reason in line[column]:
                reasons.setdefault(reason.splitlines()[0][:160], set()).add(f"{line['op']} {line['dtype']}")
        yield f"{column}:"
        for reason, ops in sorted(reasons.items(), key=lambda pair: -len(pair[1])):
            yield f"  {len(ops):4} {reason} ({', '.join(sorted(ops)[:4])})"
    count = Counter({name: sum(bool(line[name]) for line in lines) for name in ("failures", "refusals")})
    kinds = {op[0] for line in lines for op in line["ops"]}
    samples = sum(line.get("samples", 0) for line in lines)
    yield (
        f"{len({line['op'] for line in lines})} ops, {len(lines)} with their dtypes, {samples} samples, "
        f"{len(kinds)} kinds captured; {count['failures']} failed, {count['refusals']} refused"
    )


if __name__ == "__main__":
    sys.exit(main())

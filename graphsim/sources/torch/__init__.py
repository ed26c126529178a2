"""Any ``nn.Module``: its whole training step, captured without weights and without running a kernel.

The step runs twice on hollow tensors (shapes, strides and storages without memory; PyTorch's fake tensors
say what each op returns) while an observer records every dispatched op, what it allocates, aliases and
overwrites, and when each storage dies. The second run is the steady state; the first one creates the
optimizer's states. A run ends with the call of the user's step in which an optimizer stepped.

What it stands on, and why:

- *Plain tensors, not subclasses* (`hollow`): autograd treats a subclass in its own way, and the step would be
  another one. Optimizers, hooks and copies know tensors by identity, so the user's own are exchanged *in
  place*, as ``Module.to`` does (`prepare.Exchange`), and are as before afterwards.
- *The real device's dispatch keys and autograd* (`cuda`): autocast, dropout, attention and the choice of
  kernels follow from them. PyTorch asks C++ tables which device there is; these, and ``torch.cuda``, answer
  alike on the CPU build and on the CUDA build, with a GPU or without (`hooks`, `torch_cuda`): no driver is
  called, no context made. A backend of our own (PrivateUse1) would have other keys, and another step.
- *Zeros under every hollow storage* (`zeros`): what PyTorch reads below its dispatcher cannot end the
  interpreter, and is noticed, since a zero that nobody computed is a wrong value.
- *Known, unknown, checked* (`values`, `unknown`, `reads`): small values that follow from the batch are known;
  others stay unknown through arithmetic; checks pass; what code decides by them is an error with its line.
- *Versions* (`versions`): all this reaches into PyTorch where it promises nothing, so a version that is not
  among the tested ones is refused before anything is changed. What a capture cannot follow (several
  processes, compiled modules, cuDNN's recurrent networks, sparse gradients) is refused too (`checks`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from graphsim.core.graph import Graph
from graphsim.sources.torch.versions import need_torch
from graphsim.step.training import Training

if TYPE_CHECKING:
    import torch

Step = Callable[[Any, Any, Any], Any]
"""``step(model, batch, optimizer)``: one training step in the user's own words."""


def from_torch(
    module: torch.nn.Module | Callable[[], torch.nn.Module],
    inputs: Any,
    *,
    optimizer: Any = "adamw",
    loss: Callable[..., Any] | None = None,
    step: Step | None = None,
    first: bool = False,
    name: str = "",
    lines: bool = False,
    target: str = "",
    device: str = "",
    assume: Mapping[str, Any] | None = None,
) -> Graph:
    """Return the graph of one training step of *module*.

    Args:
        module: a model, or a function that makes one (then nothing is ever allocated for it).
        inputs: the batch: a tensor, a list or tuple of arguments, a dict of keyword arguments, or a
            function that makes one of these. Without *step*, they are what the model is called with.
        optimizer: a name such as 'adamw' or 'sgd', a function of the parameters
            (``torch.optim.AdamW``, a lambda), an optimizer, or None for no update.
        loss: a function of the model's output, or of output and batch, that returns the scalar to
            differentiate. Default: the output's ``loss``, the output itself if it is a scalar, else
            the mean of its first floating tensor.
        step: ``step(model, batch, optimizer)``, in place of the usual zero_grad, forward, backward, step.
        first: return step 1, in which optimizer states are created; else the steady state (step 2).
        name: of the graph; default: the model's class.
        lines: note the Python line of each op in its attribute ``line``.
        target: 'cuda' to capture the step as it would run on a GPU, on any machine: model and inputs are
            moved there first; 'cpu'; empty: where the model is.
        device: the GPU of the catalogue, where a rule depends on it; default: a100-80g.
        assume: values of numbers on which code decides and that are not known without running the model, by
            the place that reads them: ``{"train.py:31": 0.5}``.

    Beside the usual ones, the graph's attributes say what the step did, each a list of strings:
    ``optimizers`` (the classes of those that stepped), ``dtypes`` (of the parameters), ``autocast`` (the dtypes
    to which it was on) and ``warnings``, sentences on what may make the graph another than that of the real
    step. Model, batch and optimizers are used in place, and afterwards are as before.

    Raises:
        MissingExtraError: PyTorch is not installed.
        UsageError, UnknownNameError: there is no such target, device or optimizer.
        CaptureError: the step cannot run without data; the message names module and line.
    """
    need_torch()
    from graphsim.sources.torch.capture import capture, gpu

    return capture(
        module,
        inputs,
        optimizer=optimizer,
        loss=loss,
        step=step,
        name=name,
        lines=lines,
        device=gpu(target, device, module),
        assume=assume,
    ).graph(first=first)


def load_torch(
    source: str,
    *,
    first: bool = False,
    optimizer: Any = "adamw",
    target: str = "",
    device: str = "",
    assume: Mapping[str, Any] | None = None,
    **parameters: Any,
) -> Graph:
    """Return the step graph of ``torch:package.module:factory``; see `capture_source` and `from_torch`.

    Raises:
        MissingExtraError: PyTorch is not installed.
        SpecError, UsageError, CaptureError: the source is wrong, or cannot run without data.
    """
    need_torch()
    from graphsim.sources.torch.capture import gpu
    from graphsim.sources.torch.source import capture_source

    on = gpu(target, device)
    captured = capture_source(source, optimizer=optimizer, device=on, parameters=parameters, assume=assume)
    return captured.graph(first=first)


def load_steps(
    source: str,
    *,
    training: Training,
    assume: Mapping[str, Any] | None = None,
    **parameters: Any,
) -> tuple[Graph, Graph]:
    """Return step 1 and the steady step of ``torch:package.module:factory``, captured once, or once for each rank.

    Raises:
        MissingExtraError: PyTorch is not installed.
        SpecError, UsageError, UnknownNameError, CaptureError: as `load_torch`.
    """
    need_torch()
    from graphsim.sources.torch.ranks import steps_of
    from graphsim.sources.torch.source import capture_source

    return steps_of(
        training,
        lambda one: capture_source(source, training=one, parameters=parameters, assume=assume),
    )

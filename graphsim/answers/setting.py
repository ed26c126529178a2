"""What is asked of a source, the same in every call: the sizes of its batch, and how it is trained."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, TypeVar, get_type_hints

from graphsim.answers.arguments import with_arguments
from graphsim.errors import UsageError, suggest
from graphsim.sources import Source, source_of
from graphsim.sources.spec.expression import Value
from graphsim.step.training import Training

F = TypeVar("F", bound=Callable[..., Any])


class Setting(TypedDict, total=False):
    """Keywords that say what is asked of a source.

    Args:
        batch: samples per (micro-)batch: the param ``batch`` of the source.
        seq: sequence length: the param ``seq``.
        params: values for other params, by name.
        optimizer: a name such as 'adamw', 'sgd', 'momentum', 'adam8bit', of a captured model also 'nadam', 'muon', ...;
            of a module also a function of the parameters (``torch.optim.AdamW``), an optimizer or a list of some.
        optimizer_impl: 'forloop', 'foreach' or 'fused'; empty: what its library picks on the target.
        precision: 'fp32', 'bf16', 'fp16', 'amp-bf16' or 'amp-fp16'.
        master_weights: the optimizer updates fp32 copies of low-precision parameters.
        target: 'cuda' or 'cpu': rules differ where PyTorch does. Empty: 'cuda'.
        gpu: a GPU of the catalogue, where a rule depends on it, such as 't4'.
        mode: 'train', 'evaluation' (no update) or 'inference' (no_grad).
        accumulation: micro-batches per optimizer step.
        zero_grad: where gradients are reset: 'before-forward', 'before-backward' or 'after-step'.
        set_to_none: release gradients instead of zeroing them.
        grad_checkpointing: of a captured model: run each block again in the backward pass.
        lora: of a captured model: rank of the adapters that are trained in place of its weights.
        quant: of a captured model: its weights in bitsandbytes' 'int8', 'nf4' or 'nf4-double'.
        kv_cache: of a captured model in mode 'inference': tokens in its cache.
        warmup: of a captured model: steps before the one that is called steady.
        steps: of a captured model: steps that are taken together as the steady one.
        assume: of a captured model: values of numbers on which its code decides and that are not known without
            running it, by the place that reads them: ``{"train.py:31": 0.5}``.
        gpus: of a captured model: GPUs that train it, each with a process of its own; 0: one, without a process group.
        rank: which of their processes; -1: of those that differ, the one that needs most.
        ddp: wrap the model in DistributedDataParallel.
        zero1: with *ddp*, shard the optimizer's states by ZeroRedundancyOptimizer.
        fsdp: shard its blocks and the whole by ``fully_shard``.
        reshard: with *fsdp*, free what was gathered of a block after its forward pass, and gather it again.
        tp: split linear layers of the blocks over so many GPUs.
        loss: of a module: a function of its output, or of output and batch, that returns the scalar to differentiate.
        step: of a module: ``step(model, batch, optimizer)``, one training step in your own words.
        training_args: a JSON file of Hugging Face ``TrainingArguments``, read by their own names.
        training: a `Training`, in place of the words above that say how it is trained.
    """

    batch: int | None
    seq: int | None
    params: Mapping[str, Value] | None
    optimizer: Any
    optimizer_impl: str
    precision: str
    master_weights: bool
    target: str
    gpu: str
    mode: str
    accumulation: int
    zero_grad: str
    set_to_none: bool
    grad_checkpointing: bool
    lora: int
    quant: str
    kv_cache: int
    warmup: int
    steps: int
    assume: Mapping[str, float] | None
    gpus: int
    rank: int
    ddp: bool
    zero1: bool
    fsdp: bool
    reshard: bool
    tp: int
    loss: Callable[..., Any] | None
    step: Callable[..., Any] | None
    training_args: str | Path | None
    training: Training | None


_OF_MODULES = ("loss", "step")
DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(Setting.__annotations__),
    **{f.name: f.default for f in fields(Training)},
    "target": "",
    "gpu": "",
    "assume": None,
}


class Asked(NamedTuple):
    """A source, and how it is trained."""

    source: Source
    training: Training


def with_one_name(setting: Mapping[str, Any]) -> dict[str, Any]:
    """Return *setting* with the card under the one name ``gpu``, also where it says ``device`` as PyTorch does.

    Raises:
        UsageError: it says both.
    """
    said = dict(setting)
    if "device" in said:
        card = said.pop("device")
        if said.get("gpu"):
            raise UsageError("the card is named twice: gpu and device are the same option")
        said["gpu"] = card
    return said


def asked(what: Any, inputs: Any, setting: Setting) -> Asked:
    """Return the source that *what* is, with the params that *setting* gives, and the training.

    Raises:
        UsageError, UnknownNameError: there is no such source or option, or an option cannot be used.
    """
    said = with_one_name(setting)
    for name in said:
        if name not in Setting.__annotations__:
            raise UsageError(f"no option '{name[:60]}'; {suggest(name, Setting.__annotations__)}")
    if (path := said.pop("training_args", None)) is not None:
        if said.get("training") is not None:
            raise UsageError("give a Training or training_args, not both")
        said = with_arguments(said, path, DEFAULTS)
    if inputs is not None:
        what = _module(what, inputs, said)
    elif any(said.get(name) is not None for name in _OF_MODULES):
        raise UsageError("loss and step are for a module with its inputs")
    params = dict(said.pop("params", None) or {})
    for name in ("batch", "seq"):
        if (size := said.pop(name, None)) is not None:
            if name in params:
                raise UsageError(f"'{name}' is set twice: as an option, and among the params")
            params[name] = size
    return Asked(source_of(what, **params), _training(said))


def _module(model: Any, inputs: Any, said: dict[str, Any]) -> Any:
    from graphsim.sources.torch.module import Module

    if said.get("optimizer", "") is None:
        raise UsageError("optimizer=None is for a step without an update: gs.peak(gs.from_torch(..., optimizer=None))")
    own = said.pop("optimizer") if not isinstance(said.get("optimizer", ""), str) else None
    return Module(model, inputs, loss=said.pop("loss", None), step=said.pop("step", None), optimizer=own)


def _training(said: Mapping[str, Any]) -> Training:
    options = {name: value for name, value in said.items() if name not in _OF_MODULES and name != "training"}
    given = said.get("training")
    if given is not None:
        if options:
            raise UsageError("give a Training or its fields as keywords, not both")
        return given  # type: ignore[no-any-return]
    options["device"] = options.pop("gpu", "")
    options["assume"] = tuple(dict(options.get("assume") or {}).items())
    options["target"] = options.get("target") or "cuda"
    if not isinstance(options.get("optimizer", ""), str):
        raise UsageError("an optimizer that is no name is for a module with its inputs")
    return Training(**options)


def spelled_out(function: F) -> F:
    """Show the keywords of `Setting` in the signature and the docstring of *function*, which takes them as one."""
    hints = get_type_hints(Setting)
    plain = inspect.signature(function)
    own = [p for p in plain.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=DEFAULTS[name], annotation=hints[name])
        for name in Setting.__annotations__
    ]
    function.__signature__ = plain.replace(parameters=[*own, *shared])  # type: ignore[attr-defined]
    words = inspect.cleandoc(Setting.__doc__ or "").partition("Args:\n")[2]
    document = inspect.cleandoc(function.__doc__ or "")
    function.__doc__ = document.replace("\n\nRaises:", f"\n{words}\n\nRaises:", 1)
    return function

"""One training step of a forward graph: lowering, backward, optimizer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from graphsim.core.devices import device_of
from graphsim.core.graph import Graph, Op, Phase, Role, Tensor
from graphsim.errors import GraphError, GraphSimError, UsageError, suggest
from graphsim.options import parse_choice
from graphsim.step.autodiff import differentiate
from graphsim.step.ops import kind_of
from graphsim.step.ops.tape import Tape, Target, parse_target
from graphsim.step.optimizers import check_modelled, implementation_of, update
from graphsim.step.precision import LossScaler, Precision, master_weights, precision_of
from graphsim.units import FLOATING

MAX_LAYERS = 100_000
"""Layers in all micro-batches of one step graph."""

Mode = Literal["train", "evaluation", "inference"]
"""train: forward, backward, update. evaluation: forward in eval mode with autograd on, loss alive.
inference: forward in eval mode under no_grad."""
MODES: tuple[Mode, ...] = ("train", "evaluation", "inference")

ZeroGrad = Literal["before-forward", "before-backward", "after-step"]
ZERO_GRAD: tuple[ZeroGrad, ...] = ("before-forward", "before-backward", "after-step")

QUANTIZATIONS = ("int8", "nf4", "nf4-double")

BOUNDS = (
    ("accumulation", 1, 4096),
    ("lora", 0, 4096),
    ("kv_cache", 0, 2**24),
    ("warmup", 1, 64),
    ("steps", 1, 64),
    ("gpus", 0, 2**20),
    ("rank", -1, 2**20),
    ("tp", 0, 4096),
)
"""Numbers of a `Training`, the least and the most that each may be."""

CAPTURED = (
    "grad_checkpointing", "lora", "quant", "kv_cache", "warmup", "steps", "assume", "gpus", "rank", "ddp", "zero1",
    "fsdp", "reshard", "tp",
)  # fmt: skip
"""Fields of a `Training` that are for captured models only: they change modules, or run the user's code."""

MICRO_BATCHES = 3
"""From the third micro-batch on, each does to memory, and takes as long, as the second did: three stand for more."""


def parse_mode(text: str) -> Mode:
    """Return the mode that *text* names.

    Raises:
        UnknownNameError: there is none.
    """
    return parse_choice("mode", text, MODES)


def parse_zero_grad(text: str) -> ZeroGrad:
    """Return where *text* says that gradients are reset.

    Raises:
        UnknownNameError: there is no such place.
    """
    return parse_choice("zero_grad position", text, ZERO_GRAD)


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """How the model is trained: everything that is not the model.

    Attributes:
        optimizer: a name of `optimizers.OPTIMIZERS`.
        optimizer_impl: 'forloop', 'foreach' or 'fused'; empty: what its library picks on the target.
        precision: a name of `precision.PRECISIONS`.
        master_weights: the optimizer updates fp32 copies of low-precision parameters
            (`precision.master_weights`).
        target: 'cpu' or 'cuda'; rules differ where PyTorch does.
        device: a GPU of the catalogue, where a rule depends on it; empty: target's default.
        mode: 'train', 'evaluation' or 'inference'.
        accumulation: micro-batches per optimizer step, each of the batch of the graph.
        zero_grad: where gradients are reset: 'before-forward', 'before-backward', 'after-step'.
        set_to_none: reset gradients by releasing them, not by zeroing in place.

    What only a captured model can be trained with (`CAPTURED`):

    Attributes:
        grad_checkpointing: each block of the model is run again in the backward pass.
        lora: rank of the adapters that are trained in place of the weights; 0: none.
        quant: weights in bitsandbytes' 'int8', 'nf4' or 'nf4-double' (quantized scales); empty: as they are.
        kv_cache: tokens in the cache when a model generates (mode 'inference').
        warmup: steps before the one that is called steady.
        steps: steps that are taken together as the steady one.
        assume: (place, value) of numbers that are not known without running the model: ``("train.py:31", 0.5)``.
        gpus: processes of the group that the model is trained by, one for each GPU; 0: no group.
        rank: which of them; -1: of those that differ, the one that needs most.
        ddp, fsdp: the model is wrapped by DistributedDataParallel; its blocks and the whole by ``fully_shard``.
        zero1: with ddp, states are sharded by ZeroRedundancyOptimizer.
        reshard: with fsdp, what was gathered of a block is freed after its forward pass, and gathered again.
        tp: linear layers of the blocks are split over so many GPUs; 0: they are not.
    """

    optimizer: str = "adamw"
    optimizer_impl: str = ""
    precision: str = "fp32"
    master_weights: bool = False
    target: Target = "cuda"
    device: str = ""
    mode: Mode = "train"
    accumulation: int = 1
    zero_grad: ZeroGrad = "before-forward"
    set_to_none: bool = True
    grad_checkpointing: bool = False
    lora: int = 0
    quant: str = ""
    kv_cache: int = 0
    warmup: int = 1
    steps: int = 1
    assume: tuple[tuple[str, float], ...] = ()
    gpus: int = 0
    rank: int = -1
    ddp: bool = False
    zero1: bool = False
    fsdp: bool = False
    reshard: bool = True
    tp: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "assume", tuple((place, value) for place, value in self.assume))  # lists, if from JSON
        parse_target(self.target)
        parse_mode(self.mode)
        parse_zero_grad(self.zero_grad)
        implementation_of(self.optimizer, self.optimizer_impl, self.target)
        precision_of(self.precision)
        if self.master_weights and precision_of(self.precision).dtype == "float32":
            raise UsageError(f"master_weights are for parameters in bf16 or fp16; {self.precision} keeps them in fp32")
        if self.quant:
            parse_choice("quantization", self.quant, QUANTIZATIONS)
        for name, least, most in BOUNDS:
            if not least <= getattr(self, name) <= most:
                raise UsageError(f"{name} must be {least} ... {most}, not {getattr(self, name)}")
        if self.quant and not self.lora and self.mode == "train":
            raise UsageError(f"weights in {self.quant} cannot be trained: add adapters (lora=16) or choose a mode")
        if self.kv_cache and self.mode != "inference":
            raise UsageError("a cache of keys and values is filled in mode 'inference' only")
        self._check_ranks()

    def _check_ranks(self) -> None:
        for name in ("ddp", "fsdp", "tp"):
            if getattr(self, name) and not self.gpus:
                raise UsageError(f"{option(name, getattr(self, name))} is for several GPUs: say how many (--gpus 8)")
        if self.ddp and (self.fsdp or self.tp):
            raise UsageError("ddp keeps whole copies of a model, which are not sharded: it does not go with fsdp or tp")
        if self.zero1 and not self.ddp:
            raise UsageError("zero1 shards the optimizer's states of a model that is copied: add --ddp")
        if not self.reshard and not self.fsdp:
            raise UsageError("no-reshard keeps what fsdp gathered: add --fsdp")
        if self.rank >= max(self.gpus, 0):
            raise UsageError(f"there is no rank {self.rank} of {self.gpus} GPUs")

    @property
    def implementation(self) -> str:
        """The optimizer implementation: the one asked for, or the default on the target."""
        return implementation_of(self.optimizer, self.optimizer_impl, self.target)

    @property
    def gpu(self) -> str:
        """The GPU of the catalogue, if the target is one."""
        return self.device if self.target == "cuda" else ""

    @property
    def shortened(self) -> Training:
        """The same with no more micro-batches than tell how memory and time go on (see `MICRO_BATCHES`)."""
        return replace(self, accumulation=min(self.accumulation, MICRO_BATCHES))

    def as_dict(self) -> dict[str, Any]:
        """Return the options as plain data, for provenance."""
        assumed = [list(one) for one in self.assume]
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"assume": assumed}

    def check(self, source: str, open_to: Collection[str], why: str) -> None:
        """Check that nothing is said of *source* but the fields *open_to*; *why* says the reason.

        Raises:
            UsageError: a field has another value than its default.
        """
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name not in open_to and value != f.default:
                raise UsageError(f"{option(f.name, value)} is not for {source}: {why}")


def option(name: str, value: object) -> str:
    """Return what is written on the command line to give the field *name* this *value*."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    if isinstance(value, tuple):
        return f"--{flag}"
    return f"--{flag} {value}"


def training_step(graph: Graph, training: Training | None = None, *, first: bool = False, **options: Any) -> Graph:
    """Return the graph of one training step of the forward *graph*.

    Args:
        graph: a forward graph, as frontends make them; its first output is the loss.
        training: how it is trained; or give the fields of `Training` as keywords.
        first: step 1, in which optimizer states are created; else the steady state (step >= 2).

    Raises:
        UnknownNameError, UsageError: an option is wrong.
        GraphError: the graph has no scalar loss, or nothing in it can be trained.
    """
    chosen = chosen_training(training, options)
    modelled = [f.name for f in fields(Training) if f.name not in CAPTURED]
    chosen.check(graph.name, modelled, "it changes modules, and this is a graph; capture the model: torch:, hf:")
    check_modelled(chosen.optimizer)
    if chosen.accumulation * len(graph.ops) > MAX_LAYERS:
        raise UsageError(
            f"{chosen.accumulation} micro-batches of {len(graph.ops)} layers are too many to write out "
            f"(at most {MAX_LAYERS} layers in all); {MICRO_BATCHES} have the peak of any greater number"
        )
    return _Step(graph, chosen, first).build()


def chosen_training(training: Training | None, options: Mapping[str, Any]) -> Training:
    """Return *training*, or one made of *options*.

    Raises:
        UsageError: both are given, or an option does not exist.
    """
    known = [f.name for f in fields(Training)]
    for name in options:
        if name not in known:
            raise UsageError(f"no training option '{name}'; {suggest(name, known)}")
    if training and options:
        raise UsageError("give a Training or its fields as keywords, not both")
    return training or Training(**options)


class _Step:
    """Builder of one step graph."""

    def __init__(self, graph: Graph, training: Training, first: bool) -> None:
        self.graph, self.training, self.first = graph, training, first
        self.precision: Precision = precision_of(training.precision)
        device = device_of(training.device, training.target)
        self.tape = Tape(
            training.target,
            training=training.mode == "train",
            gradients=training.mode != "inference",
            capability=device.capability,
            processors=device.processors,
            warm=training.mode == "train" and not first,
        )
        self.sources: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
        self.states: list[Tensor] = []
        self.scaler = LossScaler(self.tape, first=first) if self.precision.loss_scaling else None

    def build(self) -> Graph:
        """Return the step: [zero_grad] (forward [zero_grad] backward) x micro-batches, update."""
        self._declare()
        train = self.training.mode == "train"
        outputs: list[Tensor] = []
        for micro in range(self.training.accumulation if train else 1):
            before, outputs = outputs, self._forward()
            self.tape.hold(before)
            loss = outputs[0]
            if train:
                if micro == 0 and self.training.zero_grad == "before-backward":
                    self._zero_grad(Phase.BACKWARD)
                self._check_loss(loss)
                if self.scaler:
                    loss = self.scaler.scale(loss)
                differentiate(self.tape, loss, self.gradients)
                self.tape.nodes.clear()
        if train:
            self._update()
        self.tape.hold(outputs)
        return Graph(
            self.tape.ops,
            self.tape.tensors.values(),
            outputs=self._kept(() if train else outputs),
            name=self.graph.name,
            attributes={**self.graph.attributes, "training": self.training.as_dict(), "first_step": self.first},
        )

    def _declare(self) -> None:
        """Sources: parameters, buffers, inputs, and what the previous step left behind."""
        dtype = self.precision.dtype
        frozen = set(self.graph.attributes.get("frozen", ()))
        written = {name for op in self.graph.ops for name in op.outputs}
        for tensor in self.graph.tensors.values():
            if tensor.name not in written:
                kind = dtype if tensor.dtype in FLOATING else tensor.dtype
                trainable = tensor.role is Role.PARAMETER and tensor.name not in frozen
                self.sources[tensor.name] = self.tape.source(
                    tensor.name, tensor.shape, kind, tensor.role, requires_gradient=trainable
                )
        if self.training.mode == "train" and not self.first:
            self._left_over()
        if self.training.zero_grad == "before-forward":
            self._zero_grad(Phase.FORWARD)

    def _left_over(self) -> None:
        """Gradients that the step before left: zeroed ones, or some that only this backward pass releases."""
        released = self.training.set_to_none
        if released and self.training.zero_grad != "before-backward":
            return
        reached = _reached(self.graph)
        for p in self._trainable():
            if p.name in reached:
                name = f"{p.name}.grad.before" if released else f"{p.name}.grad"
                self.gradients[p.name] = self.tape.source(name, p.shape, p.dtype, Role.GRADIENT)

    def _trainable(self) -> list[Tensor]:
        return [t for t in self.sources.values() if t.role is Role.PARAMETER and self.tape.requires_gradient(t)]

    def _zero_grad(self, phase: Phase) -> None:
        """Release the gradients of the step before, or zero them in place."""
        tape = self.tape
        tape.phase = phase
        if not self.gradients:
            return
        if self.training.set_to_none:
            tape.hold(list(self.gradients.values()))
            self.gradients.clear()
            return
        for grad in self.gradients.values():
            tape.emit_many("zero_", (grad,), (), mutates=(grad,), flops=grad.size)

    def _forward(self) -> list[Tensor]:
        """Lower every op of the forward graph; return the outputs of the model, which the user keeps."""
        tape = self.tape
        tape.phase, tape.autocast = Phase.FORWARD, self.precision.autocast
        values = dict(self.sources)
        for op in self.graph.ops:
            with tape.scope(op.layer or op.name):
                results = _lower(tape, op, values)
            values.update(zip(op.outputs, results, strict=True))
        tape.hold([*tape.weight_casts.values(), *tape.shared.values()])
        tape.weight_casts.clear()
        tape.shared.clear()
        tape.autocast = None
        outputs = [values[name] for name in self.graph.outputs]
        if not outputs:
            raise GraphError(f"graph '{self.graph.name}' has no outputs")
        return outputs

    def _check_loss(self, loss: Tensor) -> None:
        if loss.size != 1:
            raise GraphError(
                f"'{self.graph.name}' ends in '{loss.name}' of shape {list(loss.shape)}: training needs a scalar "
                "loss; end the model with cross_entropy or mse, or use mode inference"
            )

    def _update(self) -> None:
        tape, training = self.tape, self.training
        tape.phase = Phase.OPTIMIZER
        trained = [p for p in self._trainable() if p.name in self.gradients]
        if self.scaler:
            self.scaler.unscale([self.gradients[p.name] for p in trained])
        form = training.implementation
        if training.master_weights:
            with master_weights(tape, trained, self.gradients) as (masters, gradients):
                states = update(tape, training.optimizer, form, masters, gradients, first=self.first)
            self.states += [*masters, *states]
        else:
            self.states += update(tape, training.optimizer, form, trained, self.gradients, first=self.first)
        if self.scaler:
            self.states += self.scaler.update()
        if training.zero_grad == "after-step":
            self._zero_grad(Phase.OPTIMIZER)

    def _kept(self, outputs: Sequence[Tensor]) -> list[str]:
        """What survives the step; without a backward pass, what autograd saved and *outputs*."""
        saved = (tensor for node in self.tape.nodes for tensor in node.saved)
        libraries = () if self.tape.warm else (t for t in self.tape.tensors.values() if t.role is Role.LIBRARY)
        kept = (*self.gradients.values(), *self.states, *outputs, *saved, *libraries)
        return list(dict.fromkeys(t.name for t in kept))


def _reached(graph: Graph) -> set[str]:
    """Return the tensors that the loss depends on."""
    reached = set(graph.outputs[:1])
    for op in reversed(graph.ops):
        if reached.intersection(op.outputs):
            reached.update(op.inputs)
    return reached


def _lower(tape: Tape, op: Op, values: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Run one op of the model. Whoever calls it in Python holds its operands until it returns."""
    owned: Mapping[str, str] = op.attributes.get("owned", {})
    operands = [values[name] for name in op.inputs[: len(op.inputs) - len(owned)]]
    parameters = {local: values[name] for local, name in owned.items()}
    kernels = len(tape.ops)
    try:
        result = kind_of(op.kind).lower(tape, operands, parameters, op.attributes)
    except GraphSimError as error:
        raise GraphError(f"op '{op.name}': {error}") from None
    if len(tape.ops) > kernels:
        tape.hold([t for t in operands if t.name not in tape.ops[-1].inputs])
    return (result,) if isinstance(result, Tensor) else result

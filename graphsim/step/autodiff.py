"""From a forward graph to one training step: lowering, reverse-mode differentiation, update.

The engine follows PyTorch's (torch/csrc/autograd/engine.cpp): nodes run in reverse order of their
creation, a node's saved tensors and incoming gradients are released when it has run, gradients of
a tensor with several consumers are summed on arrival (input_buffer.cpp), in place if the buffer is
its only owner and no view; the first gradient of a leaf is stolen (accumulate_grad.h).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from graphsim.core.graph import Phase, Role, Tensor
from graphsim.errors import GraphError
from graphsim.step.ops.tape import Node, Tape, Type


def differentiate(tape: Tape, loss: Tensor, gradients: dict[str, Tensor]) -> None:
    """Append the backward pass of *loss* to *tape*.

    *gradients* maps a parameter to its ``.grad``; those present are accumulated into, in place;
    the others are added to it.

    Raises:
        GraphError: no parameter that requires a gradient reaches the loss.
    """
    if not tape.requires_gradient(loss):
        raise GraphError("nothing to train: the loss does not depend on any parameter that requires a gradient")
    _Engine(tape, gradients).run(loss)


class _Engine:
    def __init__(self, tape: Tape, gradients: dict[str, Tensor]) -> None:
        self.tape = tape
        self.gradients = gradients
        self.pending: dict[str, Tensor] = {}
        self.owners: Counter[str] = Counter()

    def run(self, loss: Tensor) -> None:
        tape = self.tape
        tape.phase = Phase.BACKWARD
        with tape.scope("loss"):
            seed = tape.emit("ones_like", (), Type(loss.shape, loss.dtype), flops=0)
        self._deliver(loss, seed)
        nodes, waiting = self._reachable(loss)
        for node in nodes:
            grads = tuple(self._take(output) for output in node.outputs)
            needs = tuple(tape.requires_gradient(x) for x in node.inputs)
            with tape.scope(node.layer, node.forward_of):
                results: Sequence[Tensor | None] = [None] * len(node.inputs)
                if any(grad is not None for grad in grads):
                    kernels = len(tape.ops)
                    results = node.rule(grads, needs)
                    if node.saved or len(tape.ops) > kernels:
                        self._release((*node.saved, *(g for g in grads if g is not None)))
                for x, need, grad in zip(node.inputs, needs, results, strict=True):
                    if need and grad is not None:
                        self._deliver(x, grad)
            for x in node.inputs:
                if x.name in waiting:
                    waiting[x.name] -= 1
                    if not waiting[x.name]:
                        self._accumulate(x)
        tape.hold((seed,))  # the caller of Tensor.backward keeps it

    def _reachable(self, loss: Tensor) -> tuple[list[Node], Counter[str]]:
        """Return the nodes that the loss depends on, last first, and how often each leaf is an input."""
        reached = {loss.name}
        nodes = []
        waiting: Counter[str] = Counter()
        for node in reversed(self.tape.nodes):
            if any(output.name in reached for output in node.outputs):
                nodes.append(node)
                reached.update(x.name for x in node.inputs)
                waiting.update(
                    x.name for x in node.inputs if x.role is Role.PARAMETER and self.tape.requires_gradient(x)
                )
        produced = {output.name for node in nodes for output in node.outputs}
        return nodes, Counter({name: n for name, n in waiting.items() if name not in produced})

    def _take(self, tensor: Tensor) -> Tensor | None:
        grad = self.pending.pop(tensor.name, None)
        if grad is not None:
            self.owners[grad.base] -= 1
        return grad

    def _deliver(self, tensor: Tensor, grad: Tensor) -> None:
        """Add *grad* to the input buffer of the node that made *tensor*."""
        old = self._take(tensor)
        if old is not None:
            alone = not self.owners[old.base] and not self.tape.is_view(old) and old.base != grad.base
            if alone:
                grad = self.tape.inplace("add_", old, (grad,))
            else:
                grad = self.tape.emit("add", (old, grad), Type(old.shape, old.dtype))
        self.pending[tensor.name] = grad
        self.owners[grad.base] += 1

    def _release(self, tensors: Sequence[Tensor]) -> None:
        """Saved tensors and incoming gradients go when the node has run, not at their last use."""
        last = self.tape.ops[-1]
        self.tape.hold([t for t in tensors if t.name not in last.inputs])

    def _accumulate(self, parameter: Tensor) -> None:
        grad = self._take(parameter)
        if grad is None:
            return
        tape, name = self.tape, f"{parameter.name}.grad"
        with tape.scope(parameter.name.rpartition(".")[0]):
            existing = self.gradients.get(parameter.name)
            if existing is not None:
                tape.emit_many("accumulate_", (existing, grad), (), mutates=(existing,), flops=existing.size)
                return
            if any(other.name == grad.name for other in self.pending.values()):
                grad = tape.emit("clone", (grad,), Type(grad.shape, grad.dtype))
            self.gradients[parameter.name] = tape.name_as(grad, name, Role.GRADIENT)

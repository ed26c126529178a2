"""Values of small tensors under fake tensors, so that code may look at masks, lengths and counters.

A fake tensor has no data. Model code that asks ``mask.all()`` or ``lengths.tolist()`` would stop there,
or take another way than in a real step. So what follows from small tensors of known content (the user's
own token ids and masks, ``arange``, ``ones``, optimizer counters) is computed for real beside the fake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from graphsim.errors import CaptureError
from graphsim.sources.torch import collectives, zeros
from graphsim.sources.torch.fakes import FAKES
from graphsim.sources.torch.hollow import Hollows, dense
from graphsim.sources.torch.memo import Memo
from graphsim.sources.torch.reducer import Bookkeeping
from graphsim.sources.torch.shaped import CHECKS, COUNTED, CREATORS, FILLS, MAX_CHECKED, RANDOM, SHAPED, checked
from graphsim.sources.torch.unknown import Policy, python_line
from graphsim.sources.torch.wrappers import asks_for_shapes, passes_on

aten = torch.ops.aten

MAX_INTEGERS = 2**20
"""Elements of a tensor of integers or booleans whose values are kept."""

MAX_FLOATS = 2**12
"""Elements of a tensor of floats whose values are kept."""

CONSTANT = {aten.zeros_like: 0, aten.new_zeros: 0, aten.ones_like: 1, aten.new_ones: 1}
"""Ops that read of their operand only the shape, and what they fill in."""

REPLACES_STORAGE = frozenset({aten.set_.source_Storage, aten.set_.source_Storage_storage_offset})
"""Ops after which a tensor has other content, which is not known."""

NEEDS_DATA = (DataDependentOutputException, DynamicOutputShapeException)

_NO_KERNEL = "Could not run '"
"""In what PyTorch says where an op without a fake kernel is tried on real tensors of a device that is not there."""

_KEY = "_graphsim_value"
_HOST = torch.device("cpu")
"""Where values are computed, whatever the device of the fakes."""


class _Value:
    """The content of a fake tensor: a real one, a mark that its aliases share, and whether chance decided it."""

    __slots__ = ("drawn", "mark", "real")

    def __init__(self, real: torch.Tensor, mark: list[bool], drawn: bool = False) -> None:
        self.real = real
        self.mark = mark
        self.drawn = drawn


def _value_of_twin(fake: Any) -> _Value | None:
    value: _Value | None = getattr(fake, _KEY, None)
    return value


class Values:
    """Runs ops on fakes, and on the values of those that have one.

    Args:
        fake: the mode of the fakes.
        device: where model and batch are moved to; None: they stay where they are.
        policy: what is assumed of values that are not known.
        ranked: the code is that of one rank of a process group.

    Attributes:
        stepping: greater than 0 while an optimizer steps, which reads numbers and only computes with them.
        peeking: greater than 0 while Python reads a number and knows what to do with one that is unknown.
        read_unknown, read_drawn: the number last read was a stand-in; depends on a random one of the step.
        integers: of DDP's reducer.
        running: a step runs, in which random numbers are drawn anew each time.
    """

    def __init__(
        self,
        fake: FakeTensorMode,
        device: torch.device | None = None,
        policy: Policy | None = None,
        *,
        ranked: bool = False,
    ) -> None:
        self.fake = fake
        self.ranked = ranked
        self.device = device
        self.policy = policy or Policy()
        self.hollows = Hollows(fake)
        self._memo = Memo(self.hollows, _needs_more)
        self.integers = Bookkeeping(self.hollows)
        self._fakes = FAKES[device.type if device else "cpu"]
        self.stepping = 0
        self.peeking = 0
        self.read_unknown = False
        self.read_drawn = False
        self.running = False
        self._adopted: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._moved: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._random_state = torch.Generator().manual_seed(0).get_state()

    def remember(self, fake: torch.Tensor, real: torch.Tensor) -> None:
        """Keep a copy of *real* as the value of *fake*, if it is small and no parameter."""
        if _is_small(real) and not isinstance(real, torch.nn.Parameter):
            with no_dispatch():
                setattr(fake, _KEY, _Value(real.detach().clone(), [True]))

    # -- hollow tensors ------------------------------------------------------------------------

    def adopt(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the hollow tensor that stands for a real one, the same each time; its content is kept if small."""
        if self.hollows.is_hollow(tensor):
            return tensor
        known = self._adopted.get(id(tensor))
        if known is None:
            known = self._adopted[id(tensor)] = (tensor, self._hollow(tensor))
        return known[1]

    def move(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the hollow tensor on `device` that stands for *tensor*, the same each time."""
        hollow = self.adopt(tensor)
        if self.device is None or hollow.device == self.device:
            return hollow
        known = self._moved.get(id(hollow))
        if known is None:
            known = self._moved[id(hollow)] = (hollow, self._on_device(hollow))
        return known[1]

    def _on_device(self, hollow: torch.Tensor) -> torch.Tensor:
        value = self._value(hollow)
        if value is None:
            with torch.no_grad():
                moved: torch.Tensor = self.run(aten.empty_like.default, (hollow,), {"device": self.device})
        else:
            with self.fake, torch.no_grad():
                there = torch.empty_like(self.hollows.twin(hollow), device=self.device)
            self.remember(there, value.real)
            moved = self.hollows.hollow(there)
        if isinstance(hollow, torch.nn.Parameter):
            return torch.nn.Parameter(moved, hollow.requires_grad)
        return moved.requires_grad_(hollow.requires_grad)

    def lift(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the hollow tensor of one that Python code has just made of numbers."""
        return tensor if self.hollows.is_hollow(tensor) else self._hollow(tensor)

    def _hollow(self, tensor: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            twin = self.fake.from_tensor(tensor.detach())
            self.remember(twin, tensor)
            hollow = self.hollows.hollow(twin)
        if isinstance(tensor, torch.nn.Parameter):
            hollow = torch.nn.Parameter(hollow, tensor.requires_grad)
        elif tensor.requires_grad:
            hollow.requires_grad_()
        if tensor.grad is not None:
            hollow.grad = self.adopt(tensor.grad)
        return hollow

    def content(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the content of a hollow tensor.

        Raises:
            DataDependentOutputException: it is not known.
        """
        return self._content(self.hollows.twin(tensor))

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return the hollow result of an op on hollow operands.

        Raises:
            CaptureError: the result depends on data that is not known, or the op has no fake kernel.
        """
        if collectives.is_answered(func):
            for tensor in collectives.written(func, args):
                self.forget(tensor)
            return collectives.answer(func, args)
        if func is aten._local_scalar_dense.default and (value := self._value(args[0])) is not None:
            return self._read(value)
        # what is no op of ATen's may return an operand, and its schema does not say so
        asked = self._memo.key(func, args, kwargs) if func.namespace == "aten" else None
        if asked is None or (asked[1] and all(map(self._value, asked[1]))):
            return self._run(func, args, kwargs)
        key, operands = asked
        if func._overloadpacket in CONSTANT and _is_small(operands[0]):
            return self._run(func, args, kwargs)
        overwrites = _overwrites_alike(func, args)
        if not overwrites and not self._memo.knows(key):
            result = self._run(func, args, kwargs)
            self._memo.keep(key, operands, result)
            return result
        if func._schema.is_mutable:
            self._forget(func, args, self._value)
        return None if overwrites else self._memo.result(key, operands)

    def _value(self, hollow: torch.Tensor) -> _Value | None:
        """Return the value of a hollow tensor, if it is known."""
        value: _Value | None = getattr(self.hollows.known_twin(hollow), _KEY, None)
        return value if value is not None and value.mark[0] else None

    def _read(self, value: _Value) -> Any:
        self.read_drawn = self.read_drawn or value.drawn
        with no_dispatch():
            return value.real.item()

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        try:
            return self.hollows.call(self.call, func, args, kwargs)
        except (*NEEDS_DATA, UnsupportedOperatorException, NotImplementedError) as error:
            if isinstance(error, NotImplementedError) and _NO_KERNEL not in str(error):
                raise
            if func._schema.name in COUNTED:
                raise self.policy.undecided(f"{func} selects a number of elements") from error
            raise CaptureError(_reason(func, error), self.policy.layer(), python_line()) from error

    def check_unread(self, *, widely: bool = False) -> None:
        """Check that nothing was read where there are only zeros: at the start, or *widely*, in any tensor.

        Raises:
            CaptureError: something was, since the check before.
        """
        if zeros.was_read(self.hollows.largest if widely else 1):
            raise self.policy.unread("the memory of a tensor is read below PyTorch's dispatcher")

    def forget(self, tensor: torch.Tensor) -> None:
        """Make the content of a hollow tensor unknown."""
        if (value := self._value(tensor)) is not None:
            value.mark[0] = False

    # -- fake twins ----------------------------------------------------------------------------

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return the fake result of an op.

        Raises:
            DataDependentOutputException, DynamicOutputShapeException: the result depends on data that
                is not known.
        """
        operands = [leaf for leaf in _leaves(args, kwargs) if isinstance(leaf, torch.Tensor)]
        values = None if func in REPLACES_STORAGE or collectives.collective_of(func) else _values(operands)
        if func is aten._local_scalar_dense.default and self._stands_in(operands[0]):
            self.read_unknown = True
            return 1.0 if operands[0].is_floating_point() else 0
        if values is None and (answer := checked(func, operands)) is not None:
            return answer
        try:
            result = self._fakes.get(func, func)(*args, **kwargs)
        except NEEDS_DATA:
            if values is not None and operands:
                return self._adopt(self._real(func, args, kwargs), operands[0].device)
            return self._shaped_by_values(func, args)
        if values is None:
            self._unknown(func, args, result)
        elif isinstance(result, torch.Tensor | tuple | list) or func._schema.is_mutable:
            self._evaluate(func, args, kwargs, operands, values, result)
        return result

    def _stands_in(self, operand: torch.Tensor) -> bool:
        return bool(self.peeking or (self.stepping and operand.is_floating_point()))

    def _evaluate(
        self, func: Any, args: Any, kwargs: Any, operands: list[Any], values: list[_Value], result: Any
    ) -> None:
        fakes = dense(tree_leaves(result))
        if not all(_is_small(fake) for fake in fakes):
            self._forget(func, args)
            return
        if not operands and func._overloadpacket not in CREATORS and func._overloadpacket not in RANDOM:
            return
        reals = [leaf for leaf in tree_leaves(self._real(func, args, kwargs)) if isinstance(leaf, torch.Tensor)]
        marks = {value.real.untyped_storage()._cdata: value.mark for value in values}
        drawn = any(value.drawn for value in values)
        drawn = drawn or (self.running and torch.Tag.nondeterministic_seeded in func.tags)
        for fake, real in zip(fakes, reals, strict=True):
            setattr(fake, _KEY, _Value(real, marks.get(real.untyped_storage()._cdata, [True]), drawn))

    def _shaped_by_values(self, func: Any, args: Any) -> Any:
        """Run an op whose result has a shape that known operands decide, or a number that the user gave."""
        counted, rule = COUNTED.get(func._schema.name), SHAPED.get(func)
        if counted is not None and (given := self.policy.given()) is not None:
            return counted(args, int(given))
        if rule is None:
            raise
        return rule(args, self._content)

    def _content(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the value of *tensor*.

        Raises:
            DataDependentOutputException: it is not known.
        """
        value = getattr(tensor, _KEY, None)
        if value is None or not value.mark[0]:
            raise DataDependentOutputException(aten._local_scalar_dense.default)
        known: torch.Tensor = value.real
        return known

    def _unknown(self, func: Any, args: Any, result: Any) -> None:
        packet = func._overloadpacket
        if packet in CONSTANT and _is_small(result):
            with no_dispatch():
                real = torch.full(result.shape, CONSTANT[packet], dtype=result.dtype)
            setattr(result, _KEY, _Value(real, [True]))
        elif (check := CHECKS.get(func)) is not None and (passes := check(args)) is not None:
            if result.numel() <= MAX_CHECKED:
                with no_dispatch():
                    real = torch.full((), passes).expand(result.shape)
                    real = real.clone() if _is_small(result) else real
                setattr(result, _KEY, _Value(real, [True]))
        elif func in FILLS and _is_small(args[0]) and _fills_storage(args[0]):
            self._draw(func, args)
        elif func._schema.is_mutable:
            self._forget(func, args)

    def _draw(self, func: Any, args: Any) -> None:
        """A tensor that is filled with random numbers is known from then on, whatever it held."""
        tensor, *bounds = args
        with no_dispatch(), self._own_randomness(func):
            real = func(torch.empty(tensor.shape, dtype=tensor.dtype), *bounds)
        setattr(tensor, _KEY, _Value(real, [True], self.running))

    def _forget(self, func: Any, args: Any, value_of: Callable[[Any], _Value | None] = _value_of_twin) -> None:
        """Something unknown was written over a tensor: its value, and that of its aliases, is void."""
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.name == "found_inf":  # gradients do not overflow: see `unknown`
                continue
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tree_leaves(value):
                    known = value_of(tensor)
                    if known is not None:
                        known.mark[0] = False

    def _real(self, func: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = tree_map_only(torch.Tensor, lambda tensor: getattr(tensor, _KEY).real, (args, kwargs))
        args, kwargs = tree_map_only(torch.device, lambda _: _HOST, (args, kwargs))
        with no_dispatch(), self._own_randomness(func):
            return func(*args, **kwargs)

    @contextmanager
    def _own_randomness(self, func: Any) -> Iterator[None]:
        """Draw from a sequence of our own: the user's random numbers go on as if nothing had been captured."""
        if torch.Tag.nondeterministic_seeded not in func.tags:
            yield
            return
        theirs = torch.get_rng_state()
        torch.set_rng_state(self._random_state)
        try:
            yield
        finally:
            self._random_state = torch.get_rng_state()
            torch.set_rng_state(theirs)

    def _adopt(self, result: Any, device: torch.device) -> Any:
        def one(real: torch.Tensor) -> torch.Tensor:
            fake = torch.empty_like(self.fake.from_tensor(real), device=device)
            self.remember(fake, real)
            return fake

        return tree_map_only(torch.Tensor, one, result)


class Evaluating(TorchDispatchMode):
    """Hollow tensors, and values of the small ones, while a model or a batch is made."""

    def __init__(self, values: Values) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.values = values

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if passes_on(types):
            return NotImplemented
        if asks_for_shapes():
            return func(*args, **(kwargs or {}))
        self.values.check_unread()
        if func is aten.lift_fresh.default:
            return self.values.lift(args[0])
        adopt = self.values.adopt
        args, kwargs = tree_map_only(torch.Tensor, adopt, (args, kwargs or {}))
        return self.values.run(func, args, kwargs)


def _leaves(args: Any, kwargs: Any) -> list[Any]:
    leaves: list[Any] = []
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, list | tuple):
            leaves.extend(value)
        else:
            leaves.append(value)
    return leaves


def _overwrites_alike(func: Any, args: Any) -> bool:
    """True for an op in place on lists of tensors, alike in shape: it can only change what the first ones hold."""
    if func._schema.returns or not func._schema.name.startswith("aten::_foreach_"):
        return False
    lists = [[entry.shape for entry in value] for value in args if _holds_tensors(value)]
    return all(shapes == lists[0] for shapes in lists)


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], torch.Tensor)


def _needs_more(func: Any) -> bool:
    """True if the result, or its value, depends on more than the geometry of operands without values."""
    tables = (SHAPED, CHECKS, REPLACES_STORAGE, (aten._local_scalar_dense.default,), FILLS)
    return any(func in table for table in tables) or func._overloadpacket in CREATORS | RANDOM


def _values(operands: list[Any]) -> list[_Value] | None:
    values = []
    for operand in operands:
        value = getattr(operand, _KEY, None)
        if value is None or not value.mark[0]:
            return None
        values.append(value)
    return values


def _is_small(tensor: torch.Tensor) -> bool:
    return tensor.numel() <= (MAX_FLOATS if tensor.is_floating_point() else MAX_INTEGERS)


def _reason(func: Any, error: Exception) -> str:
    if isinstance(error, UnsupportedOperatorException | NotImplementedError):
        return f"{func} has no fake kernel, so its result is not known without running it"
    return f"{func} depends on the values of a tensor, which are not known without running the model"


def _fills_storage(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.itemsize

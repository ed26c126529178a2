"""What Python reads of tensors without going through an op that an observer could answer.

Where the content is known, it is given. Where it is not, a number becomes `Unknown`, text says so, a check
passes, and all else is an error that names the line: see `unknown` for the policy.
"""

from __future__ import annotations

import inspect
import linecache
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.storage import _StorageBase
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_map

from graphsim.errors import CaptureError
from graphsim.sources.torch import loaders, packed, unobserved
from graphsim.sources.torch.unknown import Unknown, python_line, unknown_to_math
from graphsim.sources.torch.values import NEEDS_DATA, Values

VALID = str(Path(torch.__file__).parent / "distributions")
"""Code that asks whether its arguments are valid. They are."""


@contextmanager
def guarded(values: Values) -> Iterator[None]:
    """Keep Python from reading memory that is not there, where PyTorch does so without dispatching an op."""
    reader = _Reader(values)
    methods: dict[str, Any] = {
        "item": reader.item,
        "tolist": reader.listed,
        "numpy": reader.array,
        "pin_memory": reader.pin,
        "__bool__": reader.truth,
        "__int__": reader.integer,
        "__float__": reader.floating,
        "__index__": reader.index,
        "__repr__": reader.text,
        "__reduce_ex__": reader.pickle,
        "__dlpack__": reader.exchange,
    }
    with ExitStack() as stack:
        for name, method in methods.items():
            stack.enter_context(_replaced(torch.Tensor, name, method))
        stack.enter_context(_replaced(_StorageBase, "__deepcopy__", reader.copy_storage))
        stack.enter_context(unknown_to_math())
        stack.enter_context(loaders.in_this_process())
        stack.enter_context(values.hollows.resizable())
        stack.enter_context(values.integers.kept())
        stack.enter_context(_Calls(values))
        yield


@contextmanager
def _replaced(owner: Any, name: str, method: Callable[..., Any]) -> Iterator[None]:
    own = name in vars(owner)  # the base class may be who has it
    original = getattr(owner, name)

    def call(tensor: torch.Tensor, *operands: Any, **options: Any) -> Any:
        return method(tensor, original, *operands, **options)

    setattr(owner, name, call)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)


def _reader() -> FrameType | None:
    """Return the frame of the code that reads a number, through this package and back."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return frame


def _answer(frame: FrameType | None) -> bool | None:
    """Return what code of PyTorch's hears that checks its operands, or whether it has converged; else None."""
    if frame is None:
        return None
    if frame.f_code is functional.gaussian_nll_loss.__code__:
        return False  # it asks whether any variance is negative
    if _iterates(frame):
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        return "ys >" in line or "min(" in line  # the curvature is positive, the first step is shortened
    return True if frame.f_code.co_filename.startswith(VALID) else None


def _iterates(frame: FrameType | None) -> bool:
    """True for the loop of LBFGS, which is taken to go on as long as it may."""
    return frame is not None and frame.f_code is inspect.unwrap(torch.optim.LBFGS.step).__code__


class _Reader:
    """Methods of ``torch.Tensor``, each given the tensor and the original."""

    def __init__(self, values: Values) -> None:
        self.values, self.policy = values, values.policy
        self._losses = count(1)  # of an optimizer that asks whether they still change

    def _peek(self, tensor: torch.Tensor, original: Callable[..., Any]) -> Any:
        """Return the number, or None if it is not known; the op that reads it is dispatched all the same."""
        values = self.values
        if not values.peeking:  # PyTorch's own way to a number leads through several of these
            values.read_unknown = values.read_drawn = False
        values.peeking += 1
        try:
            number = original(tensor)
        finally:
            values.peeking -= 1
        if values.read_drawn and not values.peeking and not values.stepping:
            self.policy.note(f"{python_line()}: a random number is read; the step is as it came out this time")
        return None if values.read_unknown else number

    def item(self, tensor: torch.Tensor, original: Any) -> Any:
        number = self._peek(tensor, original)
        if number is not None:
            return number
        if self.values.stepping or self.values.peeking:
            return 1.0 if tensor.is_floating_point() else 0
        given = self.policy.given()
        return Unknown(self.policy) if given is None else given

    def truth(self, tensor: torch.Tensor, original: Any) -> bool:
        number = self._peek(tensor, original)
        if number is not None:
            return bool(number)
        frame = _reader()
        if _iterates(frame):
            self.policy.note("LBFGS is taken not to converge; its history grows from step to step (see --warmup)")
        if (answer := _answer(frame)) is not None:
            return answer
        given = self.policy.given()
        if given is None:
            raise self.policy.undecided("code decides by a tensor")
        return bool(given)

    def integer(self, tensor: torch.Tensor, original: Any) -> int:
        number = self._peek(tensor, original)
        return int(self.policy.number() if number is None else number)

    def floating(self, tensor: torch.Tensor, original: Any) -> float:
        number = self._peek(tensor, original)
        if number is None and self.values.stepping:
            return float(next(self._losses)) if _iterates(_reader()) else 1.0
        return self.policy.number() if number is None else float(number)

    def index(self, tensor: torch.Tensor, original: Any) -> int:
        number = self._peek(tensor, original)
        if number is not None:
            return int(number)
        given = self.policy.given()
        if given is None:
            raise self.policy.undecided("a number of a tensor is an index or a size")
        return int(given)

    def listed(self, tensor: torch.Tensor, original: Any) -> Any:
        given = self.policy.given()
        if given is not None:
            with no_dispatch():
                return original(torch.full(tensor.shape, given, dtype=tensor.dtype))
        content = self._content(tensor)
        with no_dispatch():
            return original(content)

    def array(self, tensor: torch.Tensor, original: Any, **options: Any) -> Any:
        if not self.values.hollows.is_hollow(tensor):
            return original(tensor, **options)
        content = self._content(tensor)
        with no_dispatch():
            return original(content.detach().clone(), **options)

    def text(self, tensor: torch.Tensor, original: Any, **options: Any) -> str:
        if not self.values.hollows.is_hollow(tensor):
            with no_dispatch():
                return str(original(tensor, **options))
        kind = "Parameter containing:\n" if isinstance(tensor, torch.nn.Parameter) else ""
        return f"{kind}tensor(..., device='{tensor.device}', size={tuple(tensor.shape)}, dtype={tensor.dtype})"

    def pickle(self, tensor: torch.Tensor, original: Any, protocol: Any) -> Any:
        if self.values.hollows.is_hollow(tensor):
            raise self.policy.unread("a tensor is pickled")
        return original(tensor, protocol)

    def exchange(self, tensor: torch.Tensor, original: Any, **options: Any) -> Any:
        if self.values.hollows.is_hollow(tensor):
            raise self.policy.unread("a tensor is handed to another library")
        return original(tensor, **options)

    def pin(self, tensor: torch.Tensor, original: Any, *_: Any) -> torch.Tensor:
        return tensor.clone()  # of the host, as the original is

    def copy_storage(self, storage: Any, original: Any, memo: Any) -> Any:
        if not self.values.hollows.is_hollow_storage(storage):
            return original(storage, memo)
        return torch.empty(storage.nbytes(), dtype=torch.uint8).untyped_storage()

    def _content(self, tensor: torch.Tensor) -> torch.Tensor:
        return _known(self.values, tensor, "the values of a tensor are read")


def _known(values: Values, tensor: torch.Tensor, read: str) -> torch.Tensor:
    """Return the content of a tensor.

    Raises:
        CaptureError: it is not known; *read* says who wants it.
    """
    if not values.hollows.is_hollow(tensor):
        return tensor
    values.policy.vary(f"{python_line()}: {read}")
    try:
        return values.content(tensor)
    except NEEDS_DATA as error:
        raise values.policy.unread(read) from error


class _Calls(TorchFunctionMode):
    """Functions of PyTorch that look at values below the dispatcher."""

    def __init__(self, values: Values) -> None:
        super().__init__()
        self.values = values
        self._answers: dict[Any, Callable[..., Any]] = {
            torch.tensor: self._tensor,
            torch.as_tensor: self._tensor,
            torch.Tensor.new_tensor: self._tensor,
            torch.tensor_split: self._tensor_split,
            torch.Tensor.tensor_split: self._tensor_split,
            functional.one_hot: self._one_hot,
            functional.ctc_loss: self._ctc_loss,
            torch.ctc_loss: self._ctc_loss,
            packed.PACK: self._pack,
            packed.PAD: self._pad,
            **dict.fromkeys(packed.RECURRENT, self._recur),
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = self._answers.get(func)
        if answer is None:
            if func in unobserved.ASSUMED and args[0].requires_grad:
                assumed = f"{python_line()}: {unobserved.ASSUMED[func]}"
                self.values.policy.note(assumed)
                self.values.policy.vary(assumed)
            return unobserved.ANSWERS.get(func, func)(*args, **(kwargs or {}))
        return answer(func, *args, **(kwargs or {}))

    def _tensor(self, func: Any, *args: Any, **options: Any) -> Any:
        """Return ``torch.tensor(data)``: numbers of hollow tensors in *data* are known or not, as the result is."""
        unknown = False

        def number(leaf: Any) -> Any:
            nonlocal unknown
            if isinstance(leaf, torch.Tensor) and self.values.hollows.is_hollow(leaf):
                leaf = leaf.item()
            if isinstance(leaf, Unknown):
                unknown = True
                return 1.0
            return leaf

        *before, data = args[: 2 if func is torch.Tensor.new_tensor else 1] or (options.pop("data"),)
        rest = args[len(before) + 1 :]
        if not isinstance(data, torch.Tensor):
            data = tree_map(number, data)
        made = func(*before, data, *rest, **options)
        if unknown:
            self.values.forget(made)
        return made

    def _tensor_split(self, func: Any, tensor: Any, *args: Any, **options: Any) -> Any:
        options = {n: v.tolist() if isinstance(v, torch.Tensor) else v for n, v in options.items()}
        return func(tensor, *(v.tolist() if isinstance(v, torch.Tensor) else v for v in args), **options)

    def _pack(self, func: Any, x: Any, lengths: Any, batch_first: bool) -> Any:
        return packed.pack(x, self._lengths(lengths).tolist(), batch_first)

    def _pad(self, func: Any, data: Any, sizes: Any, *rest: Any) -> Any:
        return packed.pad(data, self._lengths(sizes).tolist(), *rest)

    def _recur(self, func: Any, *args: Any) -> Any:
        """Of packed sequences the sizes are read where the layer is taken apart."""
        if not packed.is_packed(args):
            return func(*args)
        return func(args[0], self._lengths(args[1]), *args[2:])

    def _lengths(self, tensor: torch.Tensor) -> torch.Tensor:
        return _known(self.values, tensor, "the lengths of packed sequences are read")

    def _ctc_loss(self, func: Any, *args: Any, **options: Any) -> Any:
        """Which kernel runs, cuDNN's or PyTorch's, depends on lengths that PyTorch reads below its dispatcher."""
        if (args[0] if args else options["log_probs"]).is_cuda:
            reason = "ctc_loss on CUDA reads lengths on the host, which a capture cannot follow: capture for the CPU"
            raise CaptureError(reason, self.values.policy.layer(), python_line())
        return func(*args, **options)

    def _one_hot(self, func: Any, tensor: Any, num_classes: int = -1) -> Any:
        """It checks that the classes are between 0 and their number. They are."""
        if num_classes < 0:
            return func(tensor, num_classes)
        self.values.peeking += 1
        try:
            return func(tensor, num_classes)
        finally:
            self.values.peeking -= 1

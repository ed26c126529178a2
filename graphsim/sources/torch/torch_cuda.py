"""``torch.cuda`` as a program finds it on a machine with one device: what it asks, and what it asks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from graphsim.core.devices import Device


class Stream:
    """A stream that is always done: captured work has no time."""

    device = torch.device("cuda", 0)
    device_index = 0
    stream_id = cuda_stream = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def wait_stream(self, stream: Any) -> None:
        """Nothing is waited for."""

    def wait_event(self, event: Any) -> None:
        """Nothing is waited for."""

    def record_event(self, event: Any = None) -> Any:
        """Return the event, which has happened."""
        return event or Event()

    def synchronize(self) -> None:
        """Nothing is waited for."""

    def query(self) -> bool:
        """Return that all is done."""
        return True

    def is_capturing(self) -> bool:
        """Return that no CUDA graph is made."""
        return False

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Event:
    """An event that has always happened."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, stream: Any = None) -> None:
        """Nothing is recorded."""

    def wait(self, stream: Any = None) -> None:
        """Nothing is waited for."""

    def synchronize(self) -> None:
        """Nothing is waited for."""

    def query(self) -> bool:
        """Return that all is done."""
        return True

    def elapsed_time(self, event: Any) -> float:
        """Return a time that is not known."""
        return 1.0


class _Generator(torch.Generator):
    """A generator of the host, whatever device it is asked for: nobody draws from it on a device."""

    def __new__(cls, device: Any = None) -> _Generator:
        return super().__new__(cls)


_COMMANDS = (
    "_lazy_init",
    "init",
    "synchronize",
    "empty_cache",
    "ipc_collect",
    "set_device",
    "set_stream",
    "reset_peak_memory_stats",
    "reset_max_memory_allocated",
    "reset_max_memory_cached",
    "reset_accumulated_memory_stats",
    "set_rng_state",
    "set_rng_state_all",
    "manual_seed",
    "manual_seed_all",
    "seed",
    "seed_all",
    "set_per_process_memory_fraction",
)
"""Functions that return nothing: there is nothing to do."""

_COUNTERS = (
    "memory_allocated",
    "max_memory_allocated",
    "memory_reserved",
    "max_memory_reserved",
    "memory_cached",
    "max_memory_cached",
)
"""Functions that return bytes: the capture says them, not the allocator."""


def _answers(device: Device) -> dict[str, Any]:
    capability, nothing = device.capability, lambda *_, **__: None
    stream = Stream()
    properties = SimpleNamespace(
        name=device.name,
        major=capability[0],
        minor=capability[1],
        total_memory=device.memory,
        multi_processor_count=device.processors,
        warp_size=32,
        is_integrated=False,
        gcnArchName="",
    )
    answers: dict[str, Any] = {
        "_initialized": False,  # what asks it would save states of generators, or call the driver
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "_exchange_device": lambda *_: 0,
        "_maybe_exchange_device": lambda *_: 0,
        "get_device_capability": lambda *_, **__: capability,
        "get_device_name": lambda *_, **__: device.name,
        "get_device_properties": lambda *_, **__: properties,
        "is_bf16_supported": lambda including_emulation=True: including_emulation or capability >= (8, 0),
        "mem_get_info": lambda *_, **__: (device.memory, device.memory),
        "memory_stats": lambda *_, **__: {},
        "memory_summary": lambda *_, **__: "",
        "get_rng_state": lambda *_, **__: torch.empty(16, dtype=torch.uint8),
        "get_rng_state_all": lambda: [torch.empty(16, dtype=torch.uint8)],
        "initial_seed": lambda: 0,
        "is_current_stream_capturing": lambda: False,
        "Stream": Stream,
        "Event": Event,
        "current_stream": lambda *_, **__: stream,
        "default_stream": lambda *_, **__: stream,
        "stream": lambda *_, **__: nullcontext(),
        "device": lambda *_, **__: nullcontext(),
    }
    answers |= dict.fromkeys(_COMMANDS, nothing)
    answers |= dict.fromkeys(_COUNTERS, lambda *_, **__: 0)
    return answers


def _of_accelerator() -> dict[str, Any]:
    """``torch.accelerator``, which names no kind of device."""
    stream = Stream()
    return {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_accelerator": lambda *_, **__: torch.device("cuda"),
        "current_device_index": lambda: 0,
        "current_device_idx": lambda: 0,
        "current_stream": lambda *_, **__: stream,
        "set_device_index": lambda *_, **__: None,
        "set_device_idx": lambda *_, **__: None,
        "set_stream": lambda *_, **__: None,
        "synchronize": lambda *_, **__: None,
    }


@contextmanager
def pretended_module(device: Device) -> Iterator[None]:
    """Let ``torch.cuda``, and ``torch.accelerator``, answer as with *device*."""
    with ExitStack() as stack:
        for module, answers in ((torch.cuda, _answers(device)), (torch.accelerator, _of_accelerator())):
            for name, answer in answers.items():
                if hasattr(module, name):
                    stack.enter_context(patch.object(module, name, answer))
        for name in ("range_push", "range_pop", "mark", "range_start", "range_end"):
            stack.enter_context(patch.object(torch.cuda.nvtx, name, lambda *_, **__: 0))
        stack.enter_context(patch.object(torch, "Generator", _Generator))
        yield

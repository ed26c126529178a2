"""Drive the real CuPy pool, without a GPU, in lock-step with our model; print one JSON object of differences.

CuPy's pool asks the CUDA runtime for little more than the current device. Before ``import cupy`` the
C functions that its modules import from each other are replaced by harmless ones; device memory is
made of numbers. It must run in a process of its own: nothing else may use this CuPy.
"""

from __future__ import annotations

import ctypes
import json
import random
import sys
from dataclasses import asdict

from graphsim.measured.backends import cupy as backend
from graphsim.measured.backends.cupy import take
from graphsim.measured.replay import lockstep as replay_lockstep
from graphsim.measured.replay import replay_run
from graphsim.measured.replay.lockstep import GuidedChunks
from graphsim.memory.allocators.cupy import Chunks
from graphsim.memory.allocators.online import PoolFull

KEEP = []


def fake_runtime() -> None:
    """Replace the runtime calls of the pool: one device, number 0."""
    from cupy_backends.cuda.api import runtime

    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype, api.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
    api.PyCapsule_New.restype = ctypes.py_object
    api.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]

    def replace(name: str, prototype, function) -> None:
        signature = api.PyCapsule_GetName(runtime.__pyx_capi__[name])
        callback = prototype(function)
        KEEP.extend([signature, callback])
        pointer = ctypes.cast(callback, ctypes.c_void_p)
        runtime.__pyx_capi__[name] = api.PyCapsule_New(pointer, signature, None)

    integer = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_int)
    replace("getDevice", integer, lambda skip: 0)
    replace("getDeviceCount", integer, lambda skip: 1)


class Device:
    """Device memory that is only numbers: bases far apart, none ever reused."""

    def __init__(self) -> None:
        self.next = 1 << 44

    def malloc(self, size: int, device: int) -> int:
        base = self.next
        self.next += size + 4096
        return base

    def free(self, pointer: int, device: int) -> None:
        pass


def make_pool(device: Device):
    from cupy.cuda import memory

    allocator = memory.PythonFunctionAllocator(device.malloc, device.free)
    return memory.SingleDeviceMemoryPool(allocator.malloc)


class Lockstep:
    """The real pool, the model guided by its choices, and the model left alone."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.device = Device()
        self.real = make_pool(self.device)
        if limit is not None:
            self.real.set_limit(size=limit)
        self.model, self.plain = GuidedChunks(limit), Chunks()
        self.held: dict[object, tuple] = {}
        self.count = dict.fromkeys(("events", "used", "total", "free_blocks", "out_of_memory", "plain_used"), 0)

    def malloc(self, name: object, nbytes: int) -> None:
        block = take(self.real, nbytes)
        try:
            handle = self.model.follow(nbytes, block.ptr if block else 0)
        except PoolFull:
            if block is not None:
                raise LookupError("the real pool fits what the model does not") from None
            self.count["out_of_memory"] += 1
            return
        if block is None:
            raise LookupError("the model fits what the real pool does not")
        self.held[name] = (block, handle, self.plain.malloc(nbytes) if self.limit is None else 0)

    def free(self, name: object) -> None:
        if name not in self.held:  # what ran out of memory has nothing to free
            return
        handle, other = self.held.pop(name)[1:]
        self.model.free(handle)
        if self.limit is None:
            self.plain.free(other)

    def free_all_blocks(self) -> None:
        for pool in (self.real, self.model, self.plain):
            pool.free_all_blocks()

    def compare(self) -> None:
        self.count["events"] += 1
        self.count["used"] += self.real.used_bytes() != self.model.used
        self.count["plain_used"] += self.limit is None and self.real.used_bytes() != self.plain.used
        self.count["total"] += self.real.total_bytes() != self.model.reserved
        self.count["free_blocks"] += self.real.n_free_blocks() != len(self.model.free_keys)


def lockstep(events, limit: int | None = None) -> dict[str, int]:
    """Run *events* through all; an event is (name, nbytes), a name to free, or None for free_all_blocks."""
    run = Lockstep(limit)
    for event in events:
        if event is None:
            run.free_all_blocks()
        elif isinstance(event, tuple):
            run.malloc(*event)
        else:
            run.free(event)
        run.compare()
    run.held.clear()
    return run.count


def random_events(count: int, seed: int, *, sizes: str, flush: bool):
    """Mallocs and frees around some hundred live blocks."""
    chance = random.Random(seed)
    live: list[int] = []
    for number in range(count):
        if flush and chance.random() < 0.001:
            yield None
        elif live and chance.random() < len(live) / 400:
            yield live.pop(chance.randrange(len(live)))
        else:
            few = 512 * chance.choice([1, 2, 3, 8, 64, 1000])
            yield number, few if sizes == "few" else chance.randrange(1, 1 << 20)
            live.append(number)


def spec_events(name: str):
    import graphsim as gs

    params = {
        "gpt2": {"batch": 1, "seq": 128},
        "bert_base": {"batch": 1, "seq": 128},
        "bert_large": {"batch": 1, "seq": 64},
    }
    step = gs.training_step(gs.load(name, **params.get(name, {"batch": 1})), optimizer="adamw")
    for event in gs.simulate(step).trace.events():
        yield (event.block, event.nbytes) if event.kind == "malloc" else event.block


def replays() -> dict[str, object]:
    """Run the backend itself, on numbers for memory: plain, in lock-step, and out of memory."""
    import graphsim as gs

    def pool(limit: int | None = None):
        made = make_pool(Device())
        made.set_limit(size=limit or 0)
        return made

    for module in (backend, replay_lockstep):
        vars(module)["make_pool"] = pool
    backend.Cupy.device = property(lambda self: "numbers")
    step = gs.simulate(gs.training_step(gs.load("resnet18", batch=2, size=64), optimizer="adam"))
    return {
        "plain": asdict(replay_run(step, "cupy")),
        "lockstep": asdict(replay_run(step, "cupy", lockstep=True)),
        "limit": asdict(replay_run(step, "cupy", options="limit=200MiB")),
        "limit in lockstep": asdict(replay_run(step, "cupy", options="limit=200MiB", lockstep=True)),
    }


def main() -> None:
    fake_runtime()
    import cupy  # noqa: F401

    from graphsim.sources.spec import shipped_specs

    results = {}
    if sys.argv[1] == "replay":
        results = replays()
    elif sys.argv[1] == "random":
        for seed in range(4):
            for sizes in ("few", "many"):
                results[f"{sizes} sizes, seed {seed}"] = lockstep(
                    random_events(30_000, seed, sizes=sizes, flush=bool(seed % 2))
                )
    elif sys.argv[1] == "limit":
        for seed in range(3):
            events = random_events(5_000, seed, sizes="few", flush=True)
            results[f"limit, seed {seed}"] = lockstep(events, limit=12 << 20)
    else:
        for name in shipped_specs():
            results[name] = lockstep(spec_events(name))
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main()

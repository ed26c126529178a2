"""Why CUDA ran out of memory: messages that people have met, of PyTorch 1.0 to 2.10, and snapshots of known steps."""

from __future__ import annotations

import json
import pickle
import random

import numpy as np
import pytest

import graphsim as gs
from graphsim.answers.explain.cause import Kind
from graphsim.answers.explain.snapshot import _CODES
from graphsim.core.context import CONTEXT
from graphsim.errors import OutOfMemoryError, UsageError
from graphsim.memory.allocators.torch import TorchCaching
from graphsim.show.exports.snapshot import snapshot

MIB, GIB = 2**20, 2**30

MESSAGES = {  # what was pasted, from where, and what a person who knows the allocator says of it
    "1.0, 'cached'": (  # github.com/cherubicXN/afm_cvpr2019/issues/8
        "RuntimeError: CUDA out of memory. Tried to allocate 25.00 MiB (GPU 0; 3.94 GiB total capacity; 3.14 "
        "GiB already allocated; 21.56 MiB free; 634.00 KiB cached)",
        Kind.FULL,
        {
            "requested": 25 * MIB,
            "capacity": 3.94 * GIB,
            "allocated": 3.14 * GIB,
            "free": 21.56 * MIB,
            "idle": 634 * 1024,
        },
    ),
    "1.4, 'reserved in total'": (  # github.com/pytorch/pytorch/issues/35901
        "CUDA out of memory. Tried to allocate 10.84 GiB (GPU 0; 23.65 GiB total capacity; 1.06 GiB already "
        "allocated; 10.26 GiB free; 12.53 GiB reserved in total by PyTorch)",
        Kind.FRAGMENTED,
        {"requested": 10.84 * GIB, "reserved": 12.53 * GIB, "idle": 11.47 * GIB, "outside": 0.86 * GIB},
    ),
    "2.1, 'capacty'": (  # github.com/carolchenyx/MGFN./issues/35
        "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.70 GiB. GPU 0 has a total "
        "capacty of 6.00 GiB of which 0 bytes is free. Of the allocated memory 2.93 GiB is allocated by "
        "PyTorch, and 2.30 GiB is reserved by PyTorch but unallocated. If reserved but unallocated memory is "
        "large try setting max_split_size_mb to avoid fragmentation.",
        Kind.FRAGMENTED,
        {"free": 0, "allocated": 2.93 * GIB, "reserved": 5.23 * GIB, "idle": 2.30 * GIB, "capacity": 6 * GIB},
    ),
    "one tensor": (  # github.com/studio-dots-ai/dots.ocr/issues/196
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 74.16 GiB. GPU 0 has a total capacity "
        "of 44.40 GiB of which 29.89 GiB is free. Process 2684311 has 14.51 GiB memory in use. Of the "
        "allocated memory 13.44 GiB is allocated by PyTorch, and 738.96 MiB is reserved by PyTorch but "
        "unallocated.",
        Kind.TOO_LARGE,
        {"requested": 74.16 * GIB, "capacity": 44.40 * GIB, "process": None},
    ),
    "another process, in a log of several lines": (
        "[rank0]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 768.00 MiB. GPU 0 has a total"
        " capacity\n"
        "of 83.05 GiB of which 140.38 MiB is free. Including non-PyTorch memory, this process has 23.33 GiB "
        "memory in use.\n"
        "Of the allocated memory 21.92 GiB is allocated by PyTorch, with 104.00 MiB allocated in private "
        "pools (e.g., CUDA\n"
        "Graphs), and 797.79 MiB is reserved by PyTorch but unallocated. If reserved but unallocated memory "
        "is large try\n",
        Kind.OTHERS,
        {"process": 23.33 * GIB, "private": 104 * MIB, "idle": 797.79 * MIB},
    ),
    "a limit": (
        "CUDA out of memory. Tried to allocate 8.00 GiB. GPU 0 has a total capacity of 47.37 GiB of which "
        "46.57 GiB is free. Including non-PyTorch memory, this process has 772.00 MiB memory in use. 800.55 "
        "MiB allowed; Of the allocated memory 245.48 MiB is allocated by PyTorch, and 16.52 MiB is reserved "
        "by PyTorch but unallocated.",
        Kind.LIMITED,
        {"allowed": 800.55 * MIB, "room": 800.55 * MIB, "free": 46.57 * GIB},
    ),
    "a limit, and idle memory": (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 3.98 GiB. GPU 0 has a total capacity "
        "of 31.84 GiB of which 16.30 GiB is free. Including non-PyTorch memory, this process has "
        "17179869184.00 GiB memory in use. 17.51 GiB allowed; Of the allocated memory 6.74 GiB is allocated "
        "by PyTorch, and 7.02 GiB is reserved by PyTorch but unallocated.",
        Kind.FRAGMENTED,
        {"process": None, "idle": 7.02 * GIB},
    ),
    "free": (  # github.com/RenYurui/StructureFlow/issues/35
        "RuntimeError: CUDA out of memory. Tried to allocate 8.13 GiB (GPU 0; 10.76 GiB total capacity; "
        "643.57 MiB already allocated; 8.20 GiB free; 32.43 MiB cached)",
        Kind.REFUSED,
        {"free": 8.20 * GIB},
    ),
    "cudaMallocAsync": (  # github.com/richservo/rs-nodes/issues/4
        "torch.OutOfMemoryError: Allocation on device 0 would exceed allowed memory. (out of memory)\n"
        "Currently allocated     : 10.48 GiB\n"
        "Requested               : 21.81 GiB\n"
        "Device limit            : 15.93 GiB\n"
        "Free (according to CUDA): 0 bytes\n"
        "PyTorch limit (set by user-supplied memory fraction)\n"
        "                        : 17179869184.00 GiB",
        Kind.TOO_LARGE,
        {"requested": 21.81 * GIB, "capacity": 15.93 * GIB, "free": 0, "allocated": 10.48 * GIB, "allowed": None},
    ),
    "ROCm": (
        "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 76.00 MiB. GPU 0 has a total capacity "
        "of 255.69 GiB of which 252.82 GiB is free. 1.20 GiB allowed; Of the allocated memory 1.14 GiB is "
        "allocated by PyTorch, with 17.00 MiB allocated in private pools (e.g., HIP Graphs), and 18.63 MiB is"
        " reserved by PyTorch but unallocated.",
        Kind.LIMITED,
        {"capacity": 255.69 * GIB, "private": 17 * MIB},
    ),
    "a library": (
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        Kind.LIBRARY,
        {},
    ),
    "the driver": ("RuntimeError: CUDA error: out of memory\nCUDA kernel errors might be ...", Kind.LIBRARY, {}),
    "cut": (
        "CUDA out of memory. Tried to allocate 1.96 GiB. GPU 0 has a total capacity of 23.53 GiB",
        Kind.UNKNOWN,
        {},
    ),
}


@pytest.mark.parametrize(("text", "kind", "figures"), MESSAGES.values(), ids=MESSAGES)
def test_a_message_is_read_to_its_digits_and_its_cause_named(text, kind, figures):
    answer = gs.explain(f"Traceback ...\n{text}\nand more of a log")
    assert answer.cause.kind is kind
    told = json.loads(answer.to_json())["moment"]
    for name, size in figures.items():
        assert told[name] == (None if size is None else pytest.approx(size, abs=2)), name
    assert str(answer).startswith(str(kind)[0].upper() + str(kind)[1:])


def test_what_helps_is_what_the_cause_asks_for():
    said = {name: gs.explain(text).cause.change for name, (text, _, _) in MESSAGES.items()}
    assert "expandable_segments:True" in said["1.4, 'reserved in total'"]
    assert "that one tensor smaller" in said["one tensor"]
    assert "end them" in said["another process, in a log of several lines"]
    assert "set_per_process_memory_fraction" in said["a limit"]


def test_of_a_small_request_it_says_that_it_is_a_segment():
    full = (
        "CUDA out of memory. Tried to allocate 20.00 MiB (GPU 4; 31.75 GiB total capacity; 30.29 GiB already "
        "allocated; 3.75 MiB free; 30.40 GiB reserved in total by PyTorch)"
    )
    answer = gs.explain(full)
    assert answer.cause.kind is Kind.FULL
    assert any("any request of 1 to 10 MiB" in note for note in answer.notes)
    assert "there are 2 messages" in str(gs.explain(f"{full}\n{full}"))


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ("", "no CUDA out-of-memory message"),
        ("MemoryError: out of memory", "no CUDA out-of-memory message"),
        ("MPS backend out of memory (MPS allocated: 17.9 GiB)", "MPS"),
        (b"\x80\x04N.", "no snapshot"),
        (b"\x80\x04", "no snapshot"),
        (b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00idq\x00\x85R.", "opcode 0x63"),
        (pickle.dumps(random.Random), "opcode 0x93"),
        (pickle.dumps({(1, 2): 3}), "neither text nor a number"),
        (pickle.dumps({"segments": [{"total_size": "much"}]}), "no size"),
        (pickle.dumps({"segments": 3}), "no snapshot"),
        (b"\x80\x04r\xff\xff\xff\x7f.", "no snapshot"),
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00.", "opcode 0x96"),
        (pickle.dumps({"segments": [], "device_traces": [[{"action": "alloc"}]]}), "KeyError 'size'"),
    ],
)
def test_what_is_neither_is_refused_in_a_line_and_runs_nothing(told, why):
    with pytest.raises(UsageError, match=why) as error:
        gs.explain(told)
    assert "\n" not in str(error.value)


def test_one_thing_named_a_million_times_is_not_walked_for_ever():
    block = {"size": 512, "state": "inactive"}
    segment = {"address": 0, "total_size": 2**21, "blocks": [block] * 2000}
    with pytest.raises(UsageError, match="more than"):
        gs.explain(pickle.dumps({"segments": [segment] * 2000}))


def test_nothing_that_a_pickle_can_call_with_is_read():
    codes = {getattr(pickle, name) for name in _CODES}
    calling = ("REDUCE", "GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD", "EXT1", "PERSID")
    assert not codes & {getattr(pickle, name) for name in (*calling, "EXT2", "EXT4", "BINPERSID", "BYTEARRAY8")}


@pytest.fixture(scope="module")
def run():
    return gs.simulate(gs.training_step(gs.load("gpt2", batch=2, seq=64, layers=2), optimizer="adamw"))


@pytest.mark.parametrize("expandable", [False, True])
def test_our_own_export_is_explained_at_its_peak(run, expandable):
    options = TorchCaching(expandable_segments=expandable)
    now = gs.explain(pickle.dumps(snapshot(run, options))).moment
    layout = options(run.trace)
    bytes_after = np.cumsum(run.trace.stream[1])
    assert now.allocated == run.peak == bytes_after.max()
    assert now.reserved == layout.reserved[bytes_after.argmax()]
    ranges, names = run.live_ranges, list(run.graph.tensors)
    live = {(int(ranges.nbytes[r]), names[ranges.tensor[r]]) for r in ranges.live_at(run.peak_execution)}
    assert {(piece.nbytes, piece.name) for piece in now.live} <= live
    assert [piece.nbytes for piece in now.live] == sorted((size for size, _ in live), reverse=True)[:8]
    assert now.idle == now.reserved - now.allocated >= now.hole > 0
    assert now.expandable is expandable


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_snapshot_is_wound_back_to_the_error(run, protocol):
    options = TorchCaching()
    told = snapshot(run, options)
    entries = told["device_traces"][0]
    allocs = [i for i, entry in enumerate(entries) if entry["action"] == "alloc"]
    at = allocs[2 * len(allocs) // 3]
    wish = entries[at]
    entries.insert(at, {"action": "oom", "size": 2**33, "device_free": 5 * MIB, "frames": wish["frames"], "stream": 0})
    answer = gs.explain(pickle.dumps(told, protocol))
    events = sum(entry["action"] in ("alloc", "free_completed") for entry in entries[:at])
    layout = options(run.trace)
    now = answer.moment
    assert now.allocated == np.cumsum(run.trace.stream[1])[events - 1]
    assert now.reserved in (layout.reserved[events - 1], layout.reserved[events])  # its segment may be there already
    assert (now.requested, now.free) == (2**33, 5 * MIB)
    assert now.where == wish["frames"][0]["name"]
    assert answer.cause.kind is Kind.FULL


def message_of(source, training, room, capacity):
    """What PyTorch would print, were *room* all that its allocator may hold."""
    steps = gs.source_of(source, **training).steps()
    trace = gs.simulate(steps.first).trace
    try:
        TorchCaching(limit=room)(trace)
    except OutOfMemoryError as error:
        row = int(trace.stream[0][error.event])
        held = int(TorchCaching()(trace).used[error.event - 1])
        text = (
            f"CUDA out of memory. Tried to allocate {error.requested / MIB:.2f} MiB. GPU 0 has a total capacity of "
            f"{capacity / GIB:.2f} GiB of which {(room - error.reserved) / MIB:.2f} MiB is free. Of the allocated "
            f"memory {held / MIB:.2f} MiB is allocated by PyTorch, and {(error.reserved - held) / MIB:.2f} MiB is "
            "reserved by PyTorch but unallocated."
        )
        return text, list(steps.first.tensors)[trace.tensor[row]]
    raise AssertionError("it fits")


def test_with_the_source_the_tensor_is_named_and_the_changes_are_measured():
    text, name = message_of("lenet5", {"batch": 4096}, 150 * MIB, GIB)
    answer = gs.explain(text, "lenet5", batch=4096)
    first = answer.suspects[0]
    assert (first.here, first.name, first.step) == (True, name, "step 1")
    assert answer.moment.outside == pytest.approx(GIB - 150 * MIB, abs=MIB)
    fit = gs.fit("lenet5", memory=150 * MIB + CONTEXT[1], batch=4096)
    assert [measure.name for measure in answer.measures] == [measure.name for measure in fit.measures]
    assert answer.cause.change.startswith(f"{fit.measures[0].name}: ")


def test_a_training_that_fits_is_not_to_blame():
    text = (
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.89 GiB of which 1.00 GiB is "
        "free. Of the allocated memory 14.00 GiB is allocated by PyTorch, and 10.00 MiB is reserved by PyTorch but "
        "unallocated."
    )
    answer = gs.explain(text, "lenet5", batch=8)
    assert "something else held memory too" in " ".join(answer.notes)
    assert "look for what else is held" in answer.cause.change
    assert not any(one.here for one in answer.suspects)

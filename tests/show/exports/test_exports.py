"""Exports are read back by the tools they are for."""

from __future__ import annotations

import csv
import io
import json
import pickle
import pickletools

import pytest

import graphsim as gs
from graphsim.core.simulation import Simulation
from graphsim.memory.allocators.torch import TorchCaching
from graphsim.show.exports import EXPORTS
from graphsim.show.exports.snapshot import Snapshot


@pytest.fixture(scope="module")
def run() -> Simulation:
    return gs.simulate(gs.training_step(gs.load("resnet18", batch=2, size=64), optimizer="adam"))


SETTINGS = [
    TorchCaching(),
    TorchCaching(expandable_segments=True),
    TorchCaching(max_split_size_mb=20, roundup_power2_divisions="4"),
]


@pytest.mark.parametrize("options", SETTINGS, ids=["default", "expandable", "rounded"])
def test_pytorchs_own_tools_read_a_snapshot_and_agree_on_its_sums(run, options):
    viz = pytest.importorskip("torch.cuda._memory_viz")
    data = pickle.loads(Snapshot(options)(run))
    layout = options(run.trace)
    assert sum(segment["total_size"] for segment in data["segments"]) == layout.reserved[-1]
    assert sum(segment["allocated_size"] for segment in data["segments"]) == layout.used[-1]
    viz.segsum(data)  # raises if blocks and segments do not add up
    assert viz.trace(data)
    for render in (viz.trace_plot, viz.segment_plot):
        assert "<html" in render(data).lower() or "<body" in render(data).lower() or "script" in render(data)


@pytest.mark.parametrize("options", SETTINGS, ids=["default", "expandable", "rounded"])
def test_the_final_blocks_of_a_snapshot_follow_from_its_trace(run, options):
    data = pickle.loads(Snapshot(options)(run))
    live, reserved = {}, 0
    for entry in data["device_traces"][0]:
        if entry["action"] == "alloc":
            assert entry["addr"] not in live
            live[entry["addr"]] = entry["size"]
        elif entry["action"] == "free_completed":
            assert live.pop(entry["addr"]) == entry["size"]
        elif entry["action"] in ("segment_alloc", "segment_map"):
            reserved += entry["size"]
        elif entry["action"] in ("segment_free", "segment_unmap"):
            reserved -= entry["size"]
    blocks = [block for segment in data["segments"] for block in segment["blocks"]]
    assert live == {b["address"]: b["requested_size"] for b in blocks if b["state"] == "active_allocated"}
    assert reserved == sum(block["size"] for block in blocks)
    for segment in data["segments"]:
        address = segment["address"]
        for block in segment["blocks"]:
            assert block["address"] == address
            address += block["size"]
        assert address == segment["address"] + segment["total_size"]


def test_a_snapshot_holds_plain_objects_of_protocol_4_only(run):
    content = Snapshot()(run)
    names = {opcode.name for opcode, _, _ in pickletools.genops(content)}
    assert not names & {"GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "NEWOBJ", "INST"}
    assert content[:2] == b"\x80\x04"


def test_frames_name_the_tensor_the_op_and_the_layers(run):
    data = pickle.loads(Snapshot()(run))
    frames = [entry["frames"] for entry in data["device_traces"][0] if entry["action"] == "alloc"]
    assert frames[0][-1]["filename"] == "before the step"
    op = run.op_at(0)
    named = [frame for stack in frames for frame in stack if frame["filename"] == "forward"]
    assert {frame["name"] for frame in named} >= {op.name}
    phases = [(a["name"], a["stage"]) for a in data["external_annotations"]]
    assert phases == [(phase, stage) for phase in ("forward", "backward", "optimizer") for stage in ("START", "END")]


def test_a_perfetto_trace_has_every_op_and_its_live_bytes(run):
    events = json.loads(EXPORTS["perfetto"]()(run))["traceEvents"]
    slices = [event for event in events if event["ph"] == "X"]
    counters = [event for event in events if event["ph"] == "C"]
    assert [event["name"] for event in slices] == [op.name for op in run.graph.ops]
    assert max(event["args"]["live_bytes"] for event in slices) == run.peak
    assert max(sum(event["args"].values()) for event in counters) == run.peak
    starts = [event["ts"] for event in slices]
    assert starts == sorted(starts)


def test_the_table_adds_up(run):
    rows = list(csv.DictReader(io.StringIO(EXPORTS["csv"]()(run).decode())))
    assert len(rows) == len(run.schedule)
    assert max(int(row["live_bytes"]) for row in rows) == run.peak
    for row in rows:
        assert int(row["live_bytes"]) == sum(int(row[role]) for role in run.by_role(0))

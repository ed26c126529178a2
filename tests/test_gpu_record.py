"""The recorder of GPU runs, rehearsed on the host: what is recorded is what PyTorch's allocator did, and is kept."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from exhaustive import only

pytest.importorskip("torch")

import graphsim as gs
from graphsim.memory.allocators.torch import TorchCaching
from graphsim.show.exports.snapshot import snapshot
from graphsim.sources.spec import shipped_specs

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture(scope="module")
def programs():
    sys.path.insert(0, str(BENCH))
    try:
        yield importlib.import_module("gpu_record"), importlib.import_module("record_compare")
    finally:
        sys.path.remove(str(BENCH))


@pytest.fixture(scope="module")
def line(programs):
    """A case of the host, as a file would hold it."""
    return json.loads(json.dumps(programs[0].recorded("mlp/sgd", "cpu")))


def test_every_malloc_of_real_steps_is_where_it_was_predicted(programs, line):
    found, real, ours = programs[1].compared(line)
    assert found == []
    assert real == ours > 0
    assert [name for name, _ in line["marks"]] == ["zero_grad", "forward", "backward", "optimizer"] * 2
    assert line["steps"][1]["allocated"] >= line["steps"][0]["allocated"] > real


def test_what_a_record_has_more_or_other_is_named_with_its_place(programs, line):
    """Another temporary in the middle of backward; a tensor that is freed at the end only; one of another size."""
    begin = dict(line["marks"])["backward"]
    events = line["events"]
    at = next(n for n in range(begin, len(events)) if events[n] > 4096)
    size = events[at]
    freed = events.index(-size, at)
    changed = {
        "recorded 777,000; predicted nothing": [*events[:at], 777_000, -777_000, *events[at:]],
        f"{size:,} bytes more are live": [*events[:freed], *events[freed + 1 :], -size],
        f"recorded {size + 64:,}; predicted {size:,}": [*events[:at], size + 64, *events[at + 1 :]],
    }
    for told, other in changed.items():
        marks = [(name, n + (len(other) - len(events)) * (n > at)) for name, n in line["marks"]]
        found, _, _ = programs[1].compared({**line, "events": other, "marks": marks})
        assert told in str(found[0])
        assert "@backward" in found[0].where or "backward" in found[0].where


def test_a_history_of_the_gpu_allocator_is_read_as_the_stream_that_made_it(programs):
    run = gs.simulate(gs.training_step(gs.load("lenet5", batch=8), optimizer="adam"))
    events, segments = programs[0].stream_of(snapshot(run, TorchCaching()))
    changes = run.trace.stream[1].tolist()
    assert [abs(change) for change in events] == [abs(change) for change in changes]
    assert [change > 0 for change in events] == [change > 0 for change in changes]
    assert sum(size for _, size in segments) == TorchCaching()(run.trace).reserved_peak


def test_a_record_goes_on_where_it_stopped_and_fills_file_after_file(programs, tmp_path, monkeypatch):
    recorder = programs[0]
    noise = [number * 7919 % 1_000_003 for number in range(3000)]
    monkeypatch.setattr(recorder, "FILE_BYTES", 12_000)
    record = recorder.Record(tmp_path, "card")
    for name in ("a", "b", "c"):
        record.add({"case": name, "events": noise})
    assert len(record.files) > 1
    assert all(path.stat().st_size <= 12_000 for path in record.files)
    assert recorder.Record(tmp_path, "card").done == {"a", "b", "c"}
    last = record.files[-1]
    last.write_bytes(last.read_bytes()[:-20])  # it was cut off while it was written
    assert recorder.Record(tmp_path, "card").done == {"a", "b"}
    assert recorder.Record(tmp_path, "another").done == set()


def test_a_case_that_fails_is_a_line_with_its_reason(programs):
    failed = programs[0].in_process("no such case", "cpu")
    assert failed["case"] == "no such case"
    assert "KeyError" in failed["failed"]


def test_without_a_gpu_it_says_how_to_rehearse():
    done = subprocess.run([sys.executable, str(BENCH / "gpu_record.py")], capture_output=True, text=True, check=False)
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert done.returncode == 2
    assert "--device cpu" in done.stderr


def test_small_cases_come_first_and_all_that_was_asked_for_is_there(programs):
    from workloads_record import CASES

    names = list(programs[0].cases_of("cuda"))
    assert set(CASES) | {"replay/cupy", "replay/torch"} == set(names)
    assert names[0].startswith("mlp")
    assert names[-1].startswith("inception")
    assert names.index("hf:vit") < names.index("replay/cupy") < names.index("vgg16/fp32/8")
    for word in (
        "vgg16",
        "resnet50",
        "mobilenet",
        "inception",
        "encoder",
        "gpt2",
        "bert",
        "vit",
        "lstm",
        "gru",
        "embedding",
    ):
        assert any(word in name for name in names), word
    for word in (
        "tf32",
        "bf16",
        "channels_last",
        "benchmark",
        "scaler",
        "expandable",
        "fused",
        "foreach",
        "group_norm",
    ):
        assert any(word in name for name in names), word


def test_a_replay_of_the_specs_is_a_line_of_the_record(programs, monkeypatch, capsys, tmp_path):
    recorder, compare = programs
    shipped = {"lenet5": shipped_specs()["lenet5"], "gone": Path("gone.toml")}
    monkeypatch.setattr("graphsim.sources.spec.shipped_specs", lambda: shipped)
    line = recorder.recorded("replay/numpy", "cpu")
    replay = line["replays"]["lenet5"]
    assert "gone" in line["replays"]["gone"]["failed"]
    assert replay["matched_used"] == replay["events"] > 20
    record = recorder.Record(tmp_path, "host")
    record.add(line)
    assert compare.report(record.files) == 0
    assert "1 of 2 specs" in capsys.readouterr().out
    record.add({**line, "case": "other", "replays": {"lenet5": {**replay, "matched_used": 7}}})
    assert compare.report(record.files) == 1
    assert "7 as predicted in use" in capsys.readouterr().out


def test_inception_has_the_parameters_of_the_published_network(programs):
    import torch
    from workloads_inception import inception_v3

    with torch.device("meta"):
        network = inception_v3()
        assert network(torch.empty(2, 3, 299, 299)).shape == (2, 1000)
    assert sum(parameter.numel() for parameter in network.parameters()) == 23_834_568


TYPICAL = ("mlp/fp16-scaler", "embedding", "group_norm", "lstm", "gru", "encoder", "checkpoint", "mlp/adamw-fused")


@pytest.mark.parametrize("name", only(("gru",), TYPICAL))
def test_cases_are_predicted_for_the_card_of_the_record(programs, name):
    mallocs = list(programs[1].predicted({"case": name, "device": "cuda", "card": "NVIDIA H200"}, 512))
    assert len(mallocs) > 20
    assert all(one.nbytes % 512 == 0 for one in mallocs)

"""The command line: what people and machines read, and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import networkx as nx
import pytest

import graphsim as gs
from graphsim.simulation import ROLES

KEYS = {
    "spec",
    "batch",
    "optimizer",
    "target",
    "policy",
    "parameters",
    "parameter_bytes",
    "buffer_bytes",
    "input_bytes",
    "activations",
    "ops",
    "first",
    "steady",
    "folk",
}
STEP_KEYS = {
    "peak_bytes",
    "peak_op",
    "peak_phase",
    "phase_peak_bytes",
    "forward_end_bytes",
    "by_role_at_peak",
}


def graphsim(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "graphsim", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=False)


def test_peak_prints_the_peak_where_it_is_and_what_is_live():
    done = graphsim("peak", "lenet5", "--batch", "64", "--optimizer", "adam")
    assert done.returncode == 0, done.stderr
    report = gs.peak(gs.load("lenet5", batch=64), optimizer="adam")
    assert f"({report.steady.peak_bytes:,} bytes)" in done.stdout
    assert report.steady.peak_op in done.stdout
    for words in ("Live at the peak", "Largest live tensors", "▼", "folk formulas", "would reduce it most", "step 1"):
        assert words in done.stdout
    assert "\x1b[" not in done.stdout, "no colour codes into a pipe"


def test_json_has_the_documented_keys_and_integers_of_bytes():
    done = graphsim("peak", "lenet5", "--json", "--target", "cpu", "--optimizer", "sgd")
    data = json.loads(done.stdout)
    assert data.keys() >= KEYS
    for step in (data["first"], data["steady"]):
        assert step.keys() >= STEP_KEYS
        assert set(step["phase_peak_bytes"]) == {"forward", "backward", "optimizer"}
        assert set(step["by_role_at_peak"]) == set(ROLES)
        assert sum(step["by_role_at_peak"].values()) == step["peak_bytes"]
        assert all(type(size) is int for size in [*step["by_role_at_peak"].values(), step["forward_end_bytes"]])
    assert all(type(size) is int for size in data["folk"].values())
    assert (data["spec"], data["target"], data["policy"]) == ("lenet5", "cpu", "eager")


def test_set_batch_and_seq_override_params():
    done = graphsim("peak", "gpt2", "--batch", "2", "--seq", "32", "--set", "layers=1", "--set", "dropout=0", "--json")
    data = json.loads(done.stdout)
    assert data["batch"] == 2
    assert data["provenance"]["params"]["layers"] == 1
    assert data["provenance"]["params"]["dropout"] == 0.0
    assert data["input_bytes"] % (2 * 32 * 8) == 0


def test_inference_mode_needs_less_than_training():
    train, infer = (
        json.loads(graphsim("peak", "lenet5", "--mode", mode, "--json").stdout) for mode in ("train", "inference")
    )
    assert infer["steady"]["peak_bytes"] < train["steady"]["peak_bytes"]


@pytest.mark.parametrize("name", ["exact", "cupy", "torch"])
def test_an_allocator_adds_what_it_reserves(name):
    done = graphsim("peak", "lenet5", "--allocator", name, "--json")
    step = json.loads(done.stdout)["steady"]
    assert step["reserved_peak_bytes"] >= step["peak_bytes"]
    assert 0 <= step["fragmentation"] < 1
    assert f"reserved by the {name} allocator" in graphsim("peak", "lenet5", "--allocator", name).stdout


def test_a_networkx_graph_file_is_simulated_as_it_stands(tmp_path: Path):
    dag = nx.DiGraph([("a", "b"), ("b", "c")])
    nx.set_node_attributes(dag, {"a": 10, "b": 20, "c": 5}, "bytes")
    file = tmp_path / "dag.json"
    file.write_text(json.dumps(nx.node_link_data(dag, edges="edges")))
    assert json.loads(graphsim("peak", str(file), "--json").stdout)["steady"]["peak_bytes"] == 30
    text = graphsim("peak", str(file))
    assert text.returncode == 0
    assert "30 B" in text.stdout


def test_specs_lists_the_shipped_specs_with_their_params():
    listed = {entry["name"]: entry for entry in json.loads(graphsim("specs", "--json").stdout)}
    assert {"seed_cnn", "vgg16", "resnet50", "gpt2", "llama3_8b"} <= set(listed)
    assert "batch" in listed["gpt2"]["params"]
    assert "gpt2" in graphsim("specs").stdout


def test_ops_lists_the_op_kinds_and_describes_one():
    assert {"conv2d", "linear", "attention"} <= {
        entry["name"] for entry in json.loads(graphsim("ops", "--json").stdout)
    }
    text = graphsim("ops", "linear").stdout
    assert "out" in text
    assert "required" in text


def test_help_has_examples_and_version_prints_the_version():
    assert "graphsim peak gpt2" in " ".join(graphsim("peak", "--help").stdout.split())
    assert graphsim("--version").stdout.strip() == gs.__version__


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("peak", "gpt3"), "gpt2"),
        (("peak", "nowhere.toml"), "no such file"),
        (("peak", "."), "directory"),
        (("peak", ""), "no such file"),
        (("peak", "x" * 5000), "not a file name"),
        (("peak", "nowhere.json"), "No such file"),
        (("peak", "lenet5", "--optimizer", "adma"), "'adam'"),
        (("peak", "lenet5", "--optimizer-impl", "fast"), "forloop"),
        (("peak", "lenet5", "--precision", "fp23"), "'fp32'"),
        (("peak", "lenet5", "--target", "gpu"), "'cpu'"),
        (("peak", "lenet5", "--device", "a100"), "a100-80g"),
        (("peak", "lenet5", "--policy", "lazy"), "eager"),
        (("peak", "lenet5", "--mode", "trian"), "'train'"),
        (("peak", "lenet5", "--allocator", "tourch"), "'torch'"),
        (("peak", "lenet5", "--zero-grad", "never"), "before-forward"),
        (("peak", "lenet5", "--accumulation", "0"), "accumulation"),
        (("peak", "lenet5", "--batch", "0"), "at least 1"),
        (("peak", "lenet5", "--batch", "-3"), "at least 1"),
        (("peak", "lenet5", "--batch", "x"), "integer"),
        (("peak", "lenet5", "--batch", "9" * 30), "beyond any real model"),
        (("peak", "lenet5", "--seq", "128"), "no param 'seq'"),
        (("peak", "lenet5", "--set", "batch"), "NAME=VALUE"),
        (("peak", "lenet5", "--set", "=3"), "NAME=VALUE"),
        (("peak", "lenet5", "--set", "bacth=3"), "'batch'"),
        (("peak", "lenet5", "--set", "batch=3", "--batch", "4"), "both set"),
        (("peak", "lenet5", "--set", "batch=3", "--set", "batch=4"), "twice"),
        (("peak", "lenet5", "--set", "batch=2.5"), "integer"),
        (("peak", "lenet5", "--set", "batch=true"), "integer"),
        (("peak", "lenet5", "--set", "classes=nan"), "integer"),
        (("peak", "lenet5", "--bathc", "3"), "--batch"),
        (("peak",), "Missing argument"),
        (("peek", "lenet5"), "peek"),
        (("ops", "conv2"), "'conv2d'"),
    ],
)
def test_bad_command_lines_get_one_message_and_exit_code_2(arguments, words):
    done = graphsim(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert words in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path):
    command = f"{sys.executable} -m graphsim ops --json | head -c 10"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr

"""The command line: what people and machines read, and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import networkx as nx
import pytest
from command_line import graphsim

import graphsim as gs
from graphsim.core.simulation import ROLES

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


@pytest.mark.parametrize("name", ["exact", "cupy", "torch", "bfc", "arena"])
def test_an_allocator_adds_what_it_reserves(name):
    done = graphsim("peak", "lenet5", "--allocator", name, "--json")
    step = json.loads(done.stdout)["steady"]
    assert step["reserved_peak_bytes"] >= step["peak_bytes"]
    assert 0 <= step["fragmentation"] < 1
    assert f"reserved by the {name} allocator" in graphsim("peak", "lenet5", "--allocator", name).stdout


def test_a_limit_says_whether_it_fits_and_where_it_runs_out():
    run = gs.simulate(gs.training_step(gs.load("lenet5", batch=4), optimizer="adamw", target="cpu"))
    first = run.op_at(int((run.timeline > 800 * 1024).argmax())).name
    for limit, where in {"4GiB": "", "800KiB": first, "500KiB": "before the step"}.items():
        options = ("--target", "cpu", "--allocator", "exact", "--allocator-options", f"limit={limit}")
        step = json.loads(graphsim("peak", "lenet5", "--batch", "4", *options, "--json").stdout)["steady"]
        assert step["out_of_memory"] == where
        assert (where == "") == (step["reserved_peak_bytes"] is not None)
    assert "does not fit" in graphsim("peak", "lenet5", *options).stdout


def test_replay_says_what_was_predicted_and_measured():
    done = graphsim("replay", "lenet5", "--batch", "4", "--target", "cpu", "--json")
    data = json.loads(done.stdout)
    assert done.returncode == 0
    assert data["matched_used"] == data["matched_total"] == data["events"]
    assert data["first_mismatch"] is None
    peak = json.loads(graphsim("peak", "lenet5", "--batch", "4", "--target", "cpu", "--json").stdout)
    assert data["measured_peak_bytes"] == peak["steady"]["peak_bytes"]
    first = json.loads(graphsim("replay", "lenet5", "--batch", "4", "--target", "cpu", "--first", "--json").stdout)
    assert first["measured_peak_bytes"] == peak["first"]["peak_bytes"]
    text = graphsim("replay", "lenet5").stdout
    assert "replayed by numpy on host memory" in text
    assert f"{json.loads(graphsim('replay', 'lenet5', '--json').stdout)['measured_peak_bytes']:,}" in text


def test_pack_prints_the_height_and_writes_the_offsets(tmp_path: Path):
    blocks = tmp_path / "blocks.csv"
    blocks.write_text("id,lower,upper,size\na,0,2,4\nb,1,3,4\nc,2,4,4\n")
    done = graphsim("pack", str(blocks), "--capacity", "8", "-o", str(tmp_path / "out.csv"))
    assert done.returncode == 0
    assert "height 8 bytes, within 8; optimal" in done.stdout
    rows = [line.split(",") for line in (tmp_path / "out.csv").read_text().splitlines()]
    assert rows[0] == ["id", "lower", "upper", "size", "offset"]
    assert {row[0]: row[4] for row in rows[1:]} in ({"a": "0", "b": "4", "c": "0"}, {"a": "4", "b": "0", "c": "4"})
    small = graphsim("pack", str(blocks), "--capacity", "7", "--seconds", "0.1", "--json")
    assert small.returncode == 1
    assert json.loads(small.stdout)["fits"] is False


def test_export_chooses_the_format_by_the_suffix(tmp_path: Path):
    for name in ("step.pickle", "step.json", "step.csv"):
        done = graphsim("export", "lenet5", "-o", str(tmp_path / name))
        assert (done.returncode, done.stdout) == (0, "")
        assert (tmp_path / name).stat().st_size > 1000
    assert len(list(tmp_path.iterdir())) == 3


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
        (("peak", "lenet5", "--device", "a1000"), "a100"),
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
        (("peak", "lenet5", "--allocator-options", "limit=1GiB"), "need an allocator"),
        (("peak", "lenet5", "--allocator", "torch", "--allocator-options", "limti=1GiB"), "'limit'"),
        (("peak", "lenet5", "--allocator", "torch", "--allocator-options", "limit=huge"), "is not a size"),
        (("replay", "lenet5", "--backend", "numpi"), "'numpy'"),
        (("replay", "lenet5", "--lockstep"), "--backend cupy"),
        (("replay", "lenet5", "--backend-options", "touch=maybe"), "True or False"),
        (("pack", "nowhere.csv"), "No such file"),
        (("pack", "README.md", "--mode", "perfect"), "greedy"),
        (("pack", "README.md"), "column id is missing"),
        (("pack", "README.md", "--capacity", "x"), "is not a size"),
        (("pack", "README.md", "--seconds", "-1"), "seconds"),
        (("export", "lenet5"), "--output"),
        (("export", "lenet5", "-o", "step.txt"), "*.pickle"),
        (("export", "lenet5", "-o", "step.csv", "--format", "cvs"), "'csv'"),
        (("export", "lenet5", "-o", "step.csv", "--options", "limit=1"), "--options"),
        (("export", "lenet5", "-o", "nowhere/step.csv"), "No such file"),
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

"""Every command on every kind of source: it answers, or refuses in one line; and the answer is the same in Python."""

from __future__ import annotations

import json

import networkx as nx
import pytest
from command_line import graphsim

import graphsim as gs
from graphsim.core.context import CONTEXT

pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("transformers")

CONFIG = {
    "model_type": "bert",
    "architectures": ["BertForMaskedLM"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 64,
    "max_position_embeddings": 64,
}
MODULE = """
import torch

def make(batch=4, width=32):
    model = torch.nn.Sequential(torch.nn.Linear(16, width), torch.nn.ReLU(), torch.nn.Linear(width, 1))
    return model, torch.randn(batch, 16)

def fixed():
    return make()
"""
LOG = [
    {"INSTRUCTION": "CONSTANT", "NAME": "x"},
    {"INSTRUCTION": "MEMORY", "NAME": "x", "MEMORY": 40},
    {"INSTRUCTION": "CALL", "NAME": "f", "ARGS": ["x"], "RESULT": ["y"], "TIME": 3},
    {"INSTRUCTION": "MEMORY", "NAME": "y", "MEMORY": 60},
    {"INSTRUCTION": "ALIAS", "NAME": "y", "ALIAS": -1},
]
SOURCES = {
    "a shipped spec": "lenet5",
    "a spec file": "mine.toml",
    "a user's model": "torch:every_source_model:make",
    "a config": "hf:config.json",
    "an ONNX file": "model.onnx",
    "a graph of ours": "graph.json",
    "a step of ours": "step.json",
    "a networkx graph": "dag.json",
    "a DTR log": "ops.log",
    "a random graph": "layered:12",
}
COMMANDS = {
    "peak": ["--allocator", "torch", "--json"],
    "fit": ["--memory", "8GiB", "--json"],
    "plan": ["--budget", "0.95x", "--strategy", "sqrt", "--json"],
    "report": ["-o", "page.html"],
    "replay": ["--json"],
    "export": ["-o", "out.csv"],
    "diff": ["--json"],
    "sweep": ["--jobs", "1", "--json"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with one source of each kind."""
    here = tmp_path_factory.mktemp("sources")
    (here / "mine.toml").write_text(
        '[params]\nbatch = 4\n[inputs]\nx = { shape = ["batch", 8] }\n[model]\n'
        'layers = [{ op = "linear", out = 8 }, "relu", { op = "mse", with = "x" }]\n'
    )
    (here / "every_source_model.py").write_text(MODULE)
    (here / "config.json").write_text(json.dumps(CONFIG))
    onnx.save(linear_model(), here / "model.onnx")
    (here / "graph.json").write_text(gs.load("lenet5", batch=4).to_json())
    (here / "step.json").write_text(gs.training_step(gs.load("lenet5", batch=4)).to_json())
    dag = nx.DiGraph([("a", "b"), ("b", "c"), ("a", "c")])
    nx.set_node_attributes(dag, {"a": 10, "b": 20, "c": 5}, "bytes")
    (here / "dag.json").write_text(json.dumps(nx.node_link_data(dag, edges="edges")))
    (here / "ops.log").write_text("\n".join(map(json.dumps, LOG)))
    return here


def linear_model():
    """A product with weights (8, 4) over a symbolic batch."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")],
        "model",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.zeros((8, 4), np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    """Run a command line beside the sources, where Python is too; return exit code, output and errors."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)

    def command(*arguments: str):
        outputs = [str(tmp_path / a) if a in ("page.html", "out.csv") else a for a in arguments]
        if arguments[0] == "sweep":
            outputs += ["-o", str(tmp_path / "sweep.csv")]
        done = graphsim(*outputs)
        return done.returncode, done.stdout, done.stderr

    return command


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_answers_for_every_source(run, name, source):
    sources = [source, source] if name == "diff" else [source]
    code, out, err = run(name, *sources, *COMMANDS[name])
    assert code in (0, 1), err
    assert not err.startswith("graphsim:") or (name == "plan" and code == 1), err
    if "--json" in COMMANDS[name] and code == 0:
        answer = json.loads(out)
        assert name != "sweep" or answer["failed"] == 0
        assert name != "diff" or answer["same"]


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_python_says_what_the_command_says(run, source):
    told = json.loads(run("peak", source, "--json")[1])
    report = gs.peak(source)
    assert told["steady"]["peak_bytes"] == report.steady.peak_bytes
    assert str(report).startswith(told["spec"])
    assert len(repr(report).splitlines()) == 1


@pytest.mark.parametrize("source", ["graph.json", "step.json", "dag.json", "ops.log", "layered:12"])
def test_a_graph_as_it_stands_takes_no_options_of_a_training(run, source):
    if source == "graph.json":  # a forward graph: a model
        assert run("peak", source, "--precision", "bf16")[0] == 0
        return
    code, out, err = run("peak", source, "--precision", "bf16")
    assert (code, out) == (2, "")
    assert "--precision bf16 is not for" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("torch:every_source_model:make", ["--set", "width=4096"]),
        pytest.param("hf:config.json", ["--seq", "32"], marks=pytest.mark.exhaustive),
        ("model.onnx", []),
        ("lenet5", []),
    ],
)
def test_the_largest_batch_fits_and_the_next_does_not(run, source, options):
    memory = CONTEXT[1] + 300 * 2**20
    answer = json.loads(run("fit", source, *options, "--memory", str(memory), "--json")[1])
    sizes = [
        json.loads(run("peak", source, *options, "--batch", str(batch), "--allocator", "torch", "--json")[1])
        for batch in (answer["max_batch"], answer["max_batch"] + 1)
    ]
    held = [max(size[step]["reserved_peak_bytes"] for step in ("first", "steady")) for size in sizes]
    assert held[0] <= memory - CONTEXT[1] < held[1]


def test_a_factory_without_a_batch_is_said(run):
    answer = json.loads(run("fit", "torch:every_source_model:fixed", "--memory", "8GiB", "--json")[1])
    assert answer["max_batch"] is None
    assert answer["fits"]
    assert "takes a parameter 'batch'" in answer["notes"][0] or "parameter 'batch'" in answer["notes"][0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["peak", "every_source_model:make"], "did you mean torch:every_source_model:make"),
        (["peak", "torhc:a:b"], "torch:"),
        (["plan", "lenet5", "--budget", "0.9x", "--emit", "torch"], "no PyTorch model"),
        (["peak", "torch:every_source_model:make", "--quant", "nf4"], "nf4 cannot be trained"),
        (["peak", "lenet5", "--gpu", "abacus"], "known: "),
        (["fit", "lenet5", "--memory", "8"], "8GiB"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(run, arguments, words):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1

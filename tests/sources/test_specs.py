"""The shipped specs and the format's published schema."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import jsonschema
import pytest

import graphsim as gs
from graphsim.errors import SpecError
from graphsim.sources.spec import parse_spec, shipped_specs
from graphsim.sources.spec.schema import spec_schema

FOLDER = Path(__file__).parents[2] / "specs"
SPECS = sorted(path.stem for path in FOLDER.glob("*.toml"))

REQUIRED = {
    "seed_cnn",
    "lenet5",
    "alexnet",
    "vgg16",
    "vgg19",
    "resnet18",
    "resnet50",
    "resnet101",
    "mobilenet_v2",
    "densenet121",
    "efficientnet_b0",
    "unet",
    "bert_base",
    "bert_large",
    "gpt2",
    "vit_b16",
    "t5_small",
    "llama3_8b",
    "mixtral_8x7b",
    "lstm_lm",
}


def test_the_promised_specs_are_shipped():
    assert set(SPECS) >= REQUIRED
    assert {name: path.stem for name, path in shipped_specs().items()} == {name: name for name in SPECS}


def test_the_published_schema_is_the_one_that_the_code_makes():
    assert json.loads((FOLDER / "spec.schema.json").read_text()) == json.loads(json.dumps(spec_schema()))


@pytest.mark.parametrize("name", SPECS)
def test_every_shipped_spec_suits_the_schema_and_says_what_it_is(name):
    data = tomllib.loads((FOLDER / f"{name}.toml").read_text())
    jsonschema.Draft202012Validator(spec_schema()).validate(data)
    assert data["name"] == name
    assert 10 < len(data["about"]) < 120
    assert "batch" in data["params"]


@pytest.mark.parametrize("target", ["cpu", "cuda"])
@pytest.mark.parametrize("name", SPECS)
def test_every_shipped_spec_trains_on_both_targets(name, target):
    graph = gs.load(name)
    step = gs.training_step(graph, optimizer="sgd", target=target)
    eager, ideal = (gs.simulate(step, policy=policy) for policy in ("eager", "liveness"))
    resident = sum(t.nbytes for t in step.tensors.values() if not t.storage and t.role is gs.Role.PARAMETER)
    assert resident < ideal.peak <= eager.peak


def test_the_example_of_the_reference_page_is_a_spec():
    text = (FOLDER / "README.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    graph = parse_spec(example, "README.md")
    assert [op.name for op in graph.ops if op.kind == "linear"] == [
        "0_dense.0_linear",
        "h.0.0_linear",
        "h.1.0_linear",
        "h.2.0_linear",
        "2_linear",
    ]


def test_the_error_of_the_reference_page_is_the_real_one():
    text = (FOLDER / "README.md").read_text()
    (message,) = re.findall(r"^graphsim: (.*unknown op.*)$", text, re.MULTILINE)
    spec = """
        inputs.x.shape = [2, 3]
        [block.mlp]
        layers = [{ op = "linear", out = 4 }, { op = "relu6x" }]
        [model]
        layers = [{ block = "mlp", name = "h", repeat = 2 }]
    """
    with pytest.raises(SpecError) as error:
        parse_spec(spec, "model.toml")
    assert str(error.value) == message

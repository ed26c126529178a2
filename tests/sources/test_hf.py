"""Hugging Face configs: the graph of the config is that of the model built by hand; a bad file is one clear error."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from architectures_hf import SMALL, TRANSFORMERS  # noqa: E402
from command_line import graphsim  # noqa: E402
from exhaustive import only  # noqa: E402

import graphsim as gs  # noqa: E402
from graphsim.errors import CaptureError, GraphSimError, MissingExtraError, SpecError, UsageError  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = {"batch": 2, "seq": 12}
IMAGE = {"batch": 2, "image_size": 32}

CASES = {
    "bert": SIZES,
    "gpt2_eager": {**SIZES, "attn_implementation": "eager"},
    "llama": SIZES,
    "mixtral": SIZES,
    "mamba2": SIZES,
    "t5": SIZES,
    "whisper": SIZES,
    "wav2vec2": {"batch": 2, "seq": 400},
    "vit": {"batch": 2},
    "resnet": IMAGE,
    "clip": SIZES,
}


def write(folder, config):
    file = folder / "config.json"
    if isinstance(config, dict):
        file.write_text(json.dumps(config))
    else:
        config.to_json_file(file)
    return f"hf:{file}"


def bert(**fields):
    return {"model_type": "bert", "architectures": ["BertForMaskedLM"], "vocab_size": 96, **SMALL, **fields}


@pytest.mark.parametrize("name", only(("bert", "llama", "t5", "vit", "resnet"), CASES))
def test_a_config_gives_the_graph_of_the_model_built_by_hand(tmp_path, name):
    torch.manual_seed(0)
    model, batch = TRANSFORMERS[name]()
    if name == "wav2vec2":  # half as many characters as there are frames
        batch["labels"] = torch.randint(1, 30, (2, 20))
    if name == "clip":
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    model.config.architectures = [type(model).__name__]
    source = write(tmp_path, model.config)
    made = gs.load(source, optimizer="sgd", **CASES[name])
    real = gs.from_torch(model, batch, optimizer="sgd")
    assert made.ops == real.ops
    assert made.tensors == real.tensors
    assert gs.simulate(made).peak == gs.simulate(real).peak
    assert made.name == real.name == type(model).__name__


TASKS = {
    "BertForSequenceClassification": {"labels": (2,)},
    "BertForTokenClassification": {"labels": (2, 12)},
    "BertForQuestionAnswering": {"start_positions": (2,), "end_positions": (2,)},
    "BertForMultipleChoice": {"labels": (2,), "input_ids": (2, 2, 12), "attention_mask": (2, 2, 12)},
    "BertForPreTraining": {"labels": (2, 12), "next_sentence_label": (2,)},
}


@pytest.mark.parametrize("name", only(list(TASKS)[::3], TASKS))
def test_the_batch_suits_the_task(tmp_path, name):
    graph = gs.load(write(tmp_path, bert(architectures=[name])), **SIZES)
    inputs = {t.name: t.shape for t in graph.tensors.values() if t.role is gs.Role.INPUT and not t.storage}
    assert inputs == {"input_ids": (2, 12), "attention_mask": (2, 12), **TASKS[name]}
    assert graph.attributes["batch"] == 2


def test_without_architectures_it_is_the_base_model(tmp_path):
    config = bert()
    del config["architectures"]
    assert gs.load(write(tmp_path, config), **SIZES).name == "BertModel"


def test_a_base_model_of_encoder_and_decoder_gets_decoder_inputs(tmp_path):
    config = {"model_type": "t5", "d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    graph = gs.load(write(tmp_path, config), **SIZES)
    assert graph.tensors["decoder_input_ids"].shape == (2, 12)


def test_the_model_has_the_dtype_of_its_config(tmp_path):
    graph = gs.load(write(tmp_path, bert(dtype="bfloat16")), **SIZES)
    parameters = {t.dtype for t in graph.tensors.values() if t.role is gs.Role.PARAMETER}
    assert parameters == {"bfloat16"}


def test_fields_of_the_config_can_be_set(tmp_path):
    source = write(tmp_path, bert(num_hidden_layers=1))
    deeper = gs.load(source, num_hidden_layers=3, **SIZES)
    assert {op.layer.split(".")[3] for op in deeper.ops if op.layer.startswith("bert.encoder.layer")} == {"0", "1", "2"}
    assert deeper.attributes["params"] == {"num_hidden_layers": 3, **SIZES}


def test_a_70b_model_takes_no_memory_to_speak_of(tmp_path):
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 4,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    graph = gs.load(write(tmp_path, config), batch=1, seq=32, optimizer="sgd")
    wide = 2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672 + 2 * 8192
    parameters = sum(t.size for t in graph.tensors.values() if t.role is gs.Role.PARAMETER and not t.storage)
    assert parameters == 4 * wide + 2 * 128256 * 8192 + 8192


# -- strangers' files --------------------------------------------------------------------------------


@pytest.fixture
def _no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("_no_network")
def test_code_and_files_elsewhere_are_left_alone(tmp_path):
    code = "import pathlib; pathlib.Path('was-here').touch()"
    (tmp_path / "modeling_evil.py").write_text(code)
    remote = {"AutoConfig": "modeling_evil.Config", "AutoModelForMaskedLM": "evil/evil--modeling_evil.Model"}
    graph = gs.load(write(tmp_path, bert(auto_map=remote, _name_or_path="evil/evil")), **SIZES)
    assert graph.name == "BertForMaskedLM"
    with pytest.raises(SpecError, match="code of its own"):
        gs.load(write(tmp_path, {"model_type": "evil", "auto_map": remote}))
    assert not (tmp_path / "was-here").exists()


WRONG = {
    "not JSON": ("{", "not JSON: "),
    "no object": ("[1]", "a JSON object is expected"),
    "nested": ("[" * 100_000, "nested too deeply"),
    "digits": ('{"a": ' + "9" * 5000 + "}", "thousands of digits"),
    "no type": ("{}", "no 'model_type'"),
    "unknown type": ('{"model_type": "berd"}', "did you mean 'bert'"),
    "unknown class": (json.dumps(bert(architectures=["BertForMaskdLM"])), "did you mean 'BertForMaskedLM'"),
    "other class": (json.dumps(bert(architectures=["GPT2LMHeadModel"])), "no model of transformers for model_type"),
    "no model": (json.dumps(bert(architectures=["BertTokenizer"])), "no model of transformers for model_type"),
    "heads": (json.dumps(bert(num_attention_heads=5)), "cannot make this model: ValueError: The hidden size"),
    "a word": (json.dumps(bert(num_hidden_layers="x")), "cannot make this model"),
    "astronomical": (json.dumps(bert(num_hidden_layers=10**12)), "'num_hidden_layers' is beyond any real model"),
    "code": (json.dumps(bert(attn_implementation="evil/kernel")), "names code on the Hub"),
    "nested code": (json.dumps(bert(text_config={"attn_implementation": "evil/kernel"})), "names code on the Hub"),
}


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("name", WRONG)
def test_wrong_files(tmp_path, name):
    text, message = WRONG[name]
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(SpecError) as caught:
        gs.load(f"hf:{file}", **SIZES)
    assert str(caught.value).startswith(str(file))
    assert message in str(caught.value)


def test_files_that_are_none(tmp_path):
    (tmp_path / "large.json").write_text(" " * 2**21)
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    for name, message in {
        "missing.json": "No such file",
        "large.json": "larger than",
        "bytes.json": "not UTF-8",
        "": "No such file",
    }.items():
        with pytest.raises(SpecError, match=message):
            gs.load(f"hf:{tmp_path / name}")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the bound needs Linux")
def test_a_config_cannot_fill_the_memory(tmp_path, monkeypatch):
    from graphsim.sources.hf import model

    monkeypatch.setattr(model, "MAX_BYTES", 2**28)
    with pytest.raises(SpecError, match="does not fit in 268435456 bytes"):
        gs.load(write(tmp_path, bert(num_labels=2**31)), **SIZES)


def test_too_many_modules(tmp_path, monkeypatch):
    from graphsim.sources.hf import model

    monkeypatch.setattr(model, "MAX_MODULES", 50)
    with pytest.raises(SpecError, match="more than 50 modules"):
        gs.load(write(tmp_path, bert(num_hidden_layers=1000)), **SIZES)


def test_what_the_model_itself_refuses_names_the_file_and_the_line(tmp_path):
    config = {"model_type": "vit", "architectures": ["ViTForImageClassification"], **SMALL, "patch_size": 8}
    with pytest.raises(CaptureError, match=r"config\.json: ValueError: ") as caught:
        gs.load(write(tmp_path, {**config, "image_size": 32}), image_size=24)
    assert "modeling_vit.py:" in caught.value.line
    assert caught.value.layer.startswith("vit.embeddings")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"batch": 0}, "'batch' must be a positive integer"),
        ({"seq": "x"}, "'seq' must be a positive integer"),
        ({"num_hiden_layers": 2}, "did you mean 'num_hidden_layers'"),
        ({"attn_implementation": "evil/kernel"}, "names code on the Hub"),
    ],
)
def test_wrong_parameters(tmp_path, parameters, message):
    with pytest.raises(UsageError) as caught:
        gs.load(write(tmp_path, bert()), **parameters)
    assert message in str(caught.value)


def test_without_transformers_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"graphsim-memory\[hf\]"):
        gs.load("hf:config.json")


# -- on the command line -----------------------------------------------------------------------------


def test_a_folder_on_the_command_line(tmp_path):
    write(tmp_path, bert())
    answer = graphsim("peak", f"hf:{tmp_path}", "--batch", "4", "--seq", "16", "--optimizer", "adam", "--json")
    assert not answer.stderr
    report = json.loads(answer.stdout)
    assert (report["batch"], report["target"], report["optimizer"]) == (4, "cuda", "adam")
    assert report["provenance"]["params"] == {"batch": 4, "seq": 16}
    assert (
        report["steady"]["peak_bytes"]
        == gs.simulate(gs.load(f"hf:{tmp_path}", batch=4, seq=16, optimizer="adam", target="cuda")).peak
    )


def test_a_wrong_file_on_the_command_line(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    answer = graphsim("peak", f"hf:{tmp_path}")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr == f"graphsim: {tmp_path}: no 'model_type': not the config of a transformers model\n"


def test_all_errors_are_ours(tmp_path):
    for fields in ({"hidden_act": "no such"}, {"vocab_size": 0}, {"hidden_size": -1}, {"dtype": "float99"}):
        with pytest.raises(GraphSimError):
            gs.load(write(tmp_path, bert(**fields)), **SIZES)

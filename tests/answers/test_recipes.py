"""What the choices of a recipe save, and recipes that are read from Hugging Face's TrainingArguments."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import graphsim as gs  # noqa: E402
from graphsim.answers.arguments import options_of  # noqa: E402
from graphsim.answers.setting import asked  # noqa: E402
from graphsim.errors import GraphSimError, SpecError, UsageError  # noqa: E402

CHOICES = {"precision": "bf16", "lora": 8, "quant": "nf4"}


def model():
    return nn.Sequential(nn.Linear(2048, 4096), nn.ReLU(), nn.Linear(4096, 2048), nn.ReLU(), nn.Linear(2048, 8))


def test_each_choice_saves_what_it_takes_less_than_those_before_it():
    batch = torch.randn(16, 2048)
    answer = gs.fit(model(), batch, memory="4GiB", optimizer="sgd", **CHOICES)
    names = [choice.name for choice in answer.choices]
    assert names == ["--precision bf16", "--optimizer sgd", "--lora 8", "--quant nf4"]
    plain = gs.fit(model(), batch, memory="4GiB").need_bytes
    assert plain - sum(choice.saved_bytes for choice in answer.choices) == answer.need_bytes
    assert answer.choices[-1].need_bytes == answer.need_bytes
    text = str(answer)
    assert "What the choices save" in text
    assert "--quant nf4" in text


def test_a_model_without_a_recipe_has_no_choices():
    assert gs.fit("lenet5", memory="4GiB", precision="bf16").choices == ()


@pytest.fixture
def written(tmp_path):
    pytest.importorskip("transformers")

    def write(**arguments):
        file = tmp_path / "args.json"
        file.write_text(json.dumps(arguments))
        return file

    return write


def test_training_arguments_are_read_by_their_own_names(written):
    file = written(
        per_device_train_batch_size=4, gradient_accumulation_steps=2, bf16=True, optim="adamw_torch_fused",
        learning_rate=1e-4, output_dir="out", gradient_checkpointing=False,
    )  # fmt: skip
    source, training = asked("lenet5", None, {"training_args": file})
    assert source.params == {"batch": 4}
    assert (training.accumulation, training.precision) == (2, "amp-bf16")
    assert (training.optimizer, training.optimizer_impl) == ("adamw", "fused")


def test_arguments_are_what_transformers_itself_writes(written, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    own = transformers.TrainingArguments(output_dir=str(tmp_path), gradient_checkpointing=True, optim="adamw_8bit")
    options = options_of(written(**own.to_dict()))
    assert options["batch"] == own.per_device_train_batch_size
    assert options["grad_checkpointing"]
    assert options["optimizer"] == "adam8bit"


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"deepspeed": "ds.json"}, UsageError, "'deepspeed' is not modelled"),
        ({"optim": "galore_adamw"}, UsageError, "'optim' galore_adamw is not modelled"),
        ({"bf16ish": True}, SpecError, "no 'bf16ish'; did you mean"),
        ({"per_device_train_batch_size": "four"}, SpecError, "must be a positive integer"),
    ],
)
def test_what_is_not_modelled_is_refused_by_its_name(written, arguments, error, words):
    with pytest.raises(error, match=words):
        options_of(written(**arguments))


def test_an_option_and_a_file_that_differ_are_refused(written):
    file = written(per_device_train_batch_size=4)
    with pytest.raises(GraphSimError, match="batch is said twice: 8, and 4"):
        asked("lenet5", None, {"training_args": file, "batch": 8})

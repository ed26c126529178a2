"""What can be asked of a source, the same in every call: a word that is not known, or said twice, is refused."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import graphsim as gs
from graphsim.answers.setting import Setting, asked
from graphsim.core.devices import DEVICES
from graphsim.errors import GraphSimError, UsageError

peak: Any = gs.peak
fit: Any = gs.fit
"""As a caller without a type checker has them."""
CALLS = [gs.peak, gs.fit, gs.report]


def test_a_word_that_is_not_known_is_refused_with_the_close_one():
    with pytest.raises(UsageError, match=r"no option 'optimiser'; did you mean 'optimizer'"):
        peak("lenet5", optimiser="sgd")
    with pytest.raises(UsageError, match="no option 'layers'"):
        peak("gpt2", layers=1)


@pytest.mark.parametrize("name", ["batch", "seq"])
def test_a_size_is_said_once(name):
    with pytest.raises(UsageError, match=f"'{name}' is set twice"):
        gs.peak("gpt2", **{name: 2}, params={name: 2})
    alone = [gs.peak("gpt2", **{name: 4}, params={"layers": 1}), gs.peak("gpt2", params={"layers": 1, name: 4})]
    assert alone[0].steady.peak_bytes == alone[1].steady.peak_bytes
    assert alone[0].steady.peak_bytes != gs.peak("gpt2", params={"layers": 1}).steady.peak_bytes


def test_none_is_what_the_model_has():
    question = asked("gpt2", None, {"batch": None, "seq": 16, "params": {"layers": None}})
    assert dict(question.source.params) == {"seq": 16}


def test_the_card_has_one_name_that_pytorch_says_otherwise():
    for said in ({"gpu": "t4"}, {"device": "t4"}):
        assert asked("lenet5", None, said).training == gs.Training(device="t4")
    assert fit("lenet5", device="t4").memory_bytes == fit("lenet5", gpu="t4").memory_bytes == DEVICES["t4"].memory
    words = [("gpu", "device"), ("device", "gpu")]
    told = [gs.diff("lenet5", "lenet5", **{word: "t4"}, only_b={other: "h100-80g"}) for word, other in words]
    assert told[0].steady == told[1].steady
    for call in CALLS:
        with pytest.raises(UsageError, match="named twice"):
            call("lenet5", gpu="t4", device="h100")
    with pytest.raises(UsageError, match="either --gpu NAME or --memory SIZE"):
        fit("lenet5", device="t4", memory="2GiB")


def test_a_training_stands_in_place_of_its_words():
    training = gs.Training(optimizer="sgd", precision="amp-bf16")
    whole = gs.peak("lenet5", batch=4, training=training)
    words = gs.peak("lenet5", batch=4, optimizer="sgd", precision="amp-bf16")
    assert whole.steady.peak_bytes == words.steady.peak_bytes
    with pytest.raises(UsageError, match="a Training or its fields"):
        gs.peak("lenet5", training=training, mode="inference")


def test_what_is_for_modules_is_refused_elsewhere():
    with pytest.raises(UsageError, match="loss and step are for a module"):
        gs.peak("lenet5", loss=sum)
    with pytest.raises(UsageError, match="an optimizer that is no name is for a module"):
        gs.peak("lenet5", optimizer=object())


@pytest.mark.parametrize("what", ["lenet5", gs.load("lenet5")], ids=["name", "graph"])
@pytest.mark.parametrize("inputs", [gs.Training(), {"optimizer": "sgd"}, 8], ids=["training", "dict", "number"])
def test_inputs_are_for_a_module_and_what_is_none_takes_no_second_argument(what, inputs):
    """`gs.peak(graph, Training(...))` is a slip: the training would be the batch of a module."""
    with pytest.raises(GraphSimError, match="inputs are for a module"):
        gs.peak(what, inputs)


@pytest.mark.parametrize("call", [*CALLS, gs.diff], ids=lambda call: call.__name__)
def test_signature_and_docstring_show_every_word(call):
    signature, text = inspect.signature(call), inspect.getdoc(call) or ""
    arguments = text.partition("Args:\n")[2].partition("\n\nRaises:")[0]
    for name in Setting.__annotations__:
        shown = signature.parameters[name]
        assert shown.kind is inspect.Parameter.KEYWORD_ONLY
        assert shown.default is not inspect.Parameter.empty
        assert f"\n    {name}: " in f"\n{arguments}", name
    assert not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())


@pytest.mark.parametrize("call", [*CALLS, gs.diff], ids=lambda call: call.__name__)
def test_what_the_signature_shows_as_default_is_what_is_meant_where_nothing_is_said(call):
    shown = inspect.signature(call).parameters
    said = {name: shown[name].default for name in Setting.__annotations__ if name != "training"}
    assert asked("lenet5", None, said).training == asked("lenet5", None, {}).training == gs.Training()

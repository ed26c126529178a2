"""Will it fit: the largest batch is that of a search through all, and every measure is what it says."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_cli import graphsim

import graphsim as gs
from graphsim.answers.fit import CONTEXT, farthest, fit, largest, need_of
from graphsim.memory.allocators.torch import TorchCaching
from graphsim.sources.spec import parse_spec, shipped_specs
from graphsim.step.rewrites import with_inplace_activations
from graphsim.step.training import Training

GIB = 2**30
SMALL = {"llama3_8b": {"layers": 1}, "mixtral_8x7b": {"layers": 1}, "bert_large": {"layers": 4}}


def loader(name: str):
    return lambda params: gs.load(name, **{**SMALL.get(name, {}), **params})


@pytest.mark.parametrize("name", shipped_specs())
def test_the_largest_batch_fits_and_one_more_does_not(name):
    load, room = loader(name), 24 * GIB
    answer = fit(load, {}, Training(optimizer="sgd"), memory=room, context=(0, 0))
    needs = [need_of(load({"batch": answer.max_batch + more}), Training(optimizer="sgd")) for more in (0, 1)]
    assert needs[0] <= room < needs[1]
    assert answer.simulations <= 12
    assert answer.need_bytes == need_of(load({}), Training(optimizer="sgd"))
    assert answer.fits == (answer.need_bytes <= room)
    if answer.max_seq is not None:
        assert need_of(load({"seq": answer.max_seq}), Training(optimizer="sgd")) <= room


def test_the_search_agrees_with_trying_every_batch():
    load, training = loader("lenet5"), Training(optimizer="adam")
    needs = {batch: need_of(load({"batch": batch}), training) for batch in range(1, 400)}
    for room in range(4 * 2**20, 30 * 2**20, 3 * 2**20):
        found, _ = largest(lambda batch: needs.get(batch, 2**60), start=32, room=room)
        assert found == 0 or needs[found] <= room
        assert needs[found + 1] > room


@given(
    slope=st.integers(1, 10**7),
    constant=st.integers(0, 10**8),
    grain=st.sampled_from([1, 512, 2**21]),
    size=st.integers(0, 10**5),
    start=st.integers(1, 10**4),
)
def test_nearly_linear_needs_take_few_simulations(slope, constant, grain, size, start):
    def held(batch: int) -> int:
        return -(-(constant + slope * batch) // grain) * grain

    room = held(size) if size else max(0, held(1) - 1)
    found, calls = largest(held, start=start, room=room)
    assert found == 0 or held(found) <= room
    assert held(found + 1) > room
    assert calls <= 40


def test_measures_are_simulated_alone_and_stacked():
    load = loader("gpt2")
    params, training = {"batch": 8, "seq": 512, "layers": 4}, Training()
    answer = fit(load, params, training, memory=4 * GIB)
    assert not answer.fits
    by_name = {measure.name: measure for measure in answer.measures}
    halved = by_name["micro-batches (--batch 4 --accumulation 2)"]
    assert halved.need_bytes == need_of(load({**params, "batch": 4}), Training(accumulation=2))
    assert halved.saved_bytes == answer.need_bytes - halved.need_bytes > 0
    light = by_name["8-bit Adam (--optimizer adam8bit)"]
    assert light.need_bytes == need_of(load(params), Training(optimizer="adam8bit"))
    stacked = [m.stacked_need_bytes for m in answer.measures if m.stacked_need_bytes is not None]
    assert stacked == sorted(stacked, reverse=True)
    assert all(m.saved_bytes > 0 for m in answer.measures)


def test_the_context_is_a_range_and_decides_whether_it_may_fit():
    load = loader("resnet18")
    need = need_of(load({}), Training())
    extras = (CONTEXT[0] - 1, *CONTEXT)
    answers = [fit(load, {}, Training(), memory=need + extra) for extra in extras]
    assert [(a.fits, a.perhaps) for a in answers] == [(False, False), (False, True), (True, False)]
    assert [a.margin_bytes for a in answers] == [
        extra - CONTEXT[1] for extra in (CONTEXT[0] - 1, CONTEXT[0], CONTEXT[1])
    ]


def test_the_command_answers_people_and_machines():
    done = graphsim("fit", "lenet5", "--memory", "2GiB", "--json")
    data = json.loads(done.stdout)
    assert done.returncode == 0
    assert data["fits"]
    assert {"memory_bytes", "need_bytes", "max_batch", "simulations", "measures"} <= set(data)
    text = graphsim("fit", "gpt2", "--gpu", "t4", "--batch", "32", "--set", "layers=4")
    assert text.returncode == 1
    assert "does not fit in 14.56 GiB" in text.stdout
    assert "largest batch that fits" in text.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("lenet5",), "either --gpu NAME or --memory SIZE"),
        (("lenet5", "--gpu", "t4", "--memory", "4GiB"), "either --gpu NAME or --memory SIZE"),
        (("lenet5", "--gpu", "t44"), "'t4'"),
        (("lenet5", "--memory", "much"), "is not a size"),
        (("lenet5", "--memory", "0"), "at least one byte"),
        (("graph.json", "--memory", "1GiB"), "is a graph"),
        (("lenet6", "--memory", "1GiB"), "lenet5"),
    ],
)
def test_bad_questions_get_one_message_and_exit_code_2(arguments, words):
    done = graphsim("fit", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in " ".join(done.stderr.split())


def test_expandable_segments_are_among_the_measures_where_blocks_do_not_fit_into_each_other():
    load = lambda changed: gs.load("seed_cnn", **changed)  # noqa: E731
    params = {"batch": 2048}
    answer = fit(load, params, Training(optimizer="momentum"), memory=8 * 2**30, context=(0, 0))
    (measure,) = (m for m in answer.measures if "expandable_segments" in m.name)
    segments = TorchCaching(expandable_segments=True)
    assert measure.need_bytes == need_of(load(params), Training(optimizer="momentum"), allocator=segments)
    assert measure.saved_bytes > 0.3 * answer.need_bytes
    assert measure.time == 0


@pytest.mark.parametrize("strategy", ["blocks", "sqrt", "dtr"])
def test_a_strategy_makes_room_for_a_larger_batch(strategy):
    load = lambda changed: gs.load("gpt2", **{"layers": 4, "seq": 128, **changed})  # noqa: E731
    training = Training(optimizer="sgd")
    plain, recomputed = (
        fit(load, {"batch": 8}, training, memory=2 * 2**30, context=(0, 0), strategy=name) for name in ("", strategy)
    )
    assert recomputed.max_batch > plain.max_batch
    held = [need_of(load({"batch": recomputed.max_batch + more}), training, strategy, 2 * 2**30) for more in (0, 1)]
    assert held[0] <= 2 * 2**30 < held[1]


def test_a_batch_that_is_said_to_fit_fits():
    """Rotor plans otherwise for other sizes: what fits by a schedule of another size must not be called too large."""
    load, training = loader("seed_cnn"), Training(optimizer="sgd")
    for memory in (212, 219):
        answer = fit(load, {"batch": 18}, training, memory=memory * 2**20, context=(0, 0), strategy="rotor")
        assert answer.fits == (answer.max_batch >= 18) == (answer.need_bytes <= memory * 2**20)


def test_what_was_planned_for_one_size_is_tried_at_larger_ones():
    """What is planned for 11 does not fit, but what was for 7 fits up to 14; and for 15 there is a plan again."""
    known: set[int] = set()

    def held(size: int, plan: bool = True) -> int:
        by_known = size * 100 // (14 if 7 in known else 10) if known else 1000
        if plan and by_known > 100:
            known.add(size)
            return 90 if size in (7, 15) else size * 11
        return by_known

    assert held(7) <= 100
    assert farthest(held, lambda size: held(size, plan=False), 9, 0, 100)[0] >= 14


NET = """
[params]
batch = 64
[inputs]
x = { shape = ["batch", 256] }
labels = { shape = ["batch"], dtype = "int64" }
[model]
layers = [
  { op = "linear", out = 512, name = "first" },
  { op = "relu", inplace = INPLACE },
  { op = "linear", out = 512, name = "second" },
  LOSS
]
"""
PLAIN = '{ op = "linear", out = 9000, bias = false, name = "head" }, { op = "cross_entropy", with = "labels" }'
CHUNKED = '{ op = "linear_cross_entropy", with = "labels", out = 9000, bias = false, name = "head" }'


def net(inplace: str, loss: str):
    return lambda params: parse_spec(NET.replace("INPLACE", inplace).replace("LOSS", loss), **params)


def test_a_change_of_code_needs_what_the_changed_model_needs():
    load, params, training = net("false", PLAIN), {"batch": 20_000}, Training(optimizer="sgd")
    (found,) = (m for m in fit(load, params, training, memory=2**30, context=(0, 0)).measures if "chunks" in m.name)
    assert found.need_bytes == need_of(net("false", CHUNKED)(params), training)
    again = fit(net("false", CHUNKED), params, training, memory=2**30, context=(0, 0))
    assert not any("chunks" in m.name for m in again.measures)


@pytest.mark.parametrize("mode", ["train", "inference"])
def test_in_place_activations_take_the_place_of_what_they_read(mode):
    training = Training(optimizer="sgd", mode=mode)
    load, params = net("false", PLAIN), {"batch": 20_000}
    steps = [
        gs.simulate(gs.training_step(graph, training))
        for graph in (load(params), with_inplace_activations(load(params)), net("true", PLAIN)(params))
    ]
    assert steps[1].timeline.tolist() == steps[2].timeline.tolist()
    assert steps[1].timeline.sum() < steps[0].timeline.sum()


def test_what_autograd_needs_is_not_overwritten():
    """A sigmoid saves its output: a ReLU in place after it would spoil that."""
    text = NET.replace("INPLACE", "false").replace("LOSS", PLAIN).replace('{ op = "relu"', '"sigmoid", { op = "relu"')
    graph = parse_spec(text)
    assert with_inplace_activations(graph).ops == graph.ops

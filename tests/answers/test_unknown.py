"""What no rule is known for stands apart from what is predicted: ranges that hold what was published."""

from __future__ import annotations

import json

import pytest

import graphsim as gs
from graphsim.answers.fit import fit_of
from graphsim.answers.need import need_of
from graphsim.answers.unknown import convolution_most, unknown_of
from graphsim.memory.allocators.torch import TorchCaching
from graphsim.show.reporters.peak import report_text
from graphsim.sources import source_of
from graphsim.sources.spec import parse_spec
from graphsim.step.training import Training

MIB, GIB = 2**20, 2**30
EXCESS = {  # GiB above what is predicted without workspaces, by batch: GPUMemNet's rows on an A100, fp32 as TF32
    "vgg16": {32: 0.7, 64: 3.4, 128: 6.7},
    "resnet50": {32: 0.2, 64: 0.5, 128: 1.1},
    "mobilenet_v2": {32: 0.0, 64: 0.0, 128: 0.0},
}
SGD, ADAM = Training(optimizer="sgd"), Training(optimizer="adam")


def runs(source) -> tuple[gs.Simulation, gs.Simulation]:
    first, steady = source.steps(ADAM)
    return gs.simulate(first), gs.simulate(steady)


@pytest.mark.parametrize(("name", "batch"), [(name, batch) for name, rows in EXCESS.items() for batch in rows])
def test_published_excess_lies_inside_the_range(name, batch):
    most = convolution_most(runs(source_of(name, batch=batch)), TorchCaching())
    assert EXCESS[name][batch] - 0.05 <= most / GIB


def test_the_range_is_narrow_where_the_algorithm_is_the_one_it_is_derived_from():
    most = convolution_most(runs(source_of("vgg16", batch=128)), TorchCaching())
    assert most / GIB == pytest.approx(6.7, rel=0.2)


@pytest.mark.parametrize("channels", [8, 3])  # 3 count as 8
def test_a_convolution_has_tiles_of_input_and_output_and_a_wider_weight(channels):
    """One 3 x 3 convolution to 16 channels on 10 x 10, by hand."""
    spec = parse_spec(
        f"[inputs]\nx = {{ shape = [2, {channels}, 10, 10] }}\n[model]\n"
        'layers = [{ op = "conv2d", out = 16, kernel = 3, padding = 1, bias = false }]'
    )
    run = gs.simulate(gs.training_step(spec, mode="inference"))
    assert convolution_most((run, run)) == 9 * 4 * (2 * 8 * 100 + 2 * 16 * 100) // 4 + 4 * 4 * 16 * 8 * 9 + MIB


def test_the_host_has_nothing_unknown_and_a_model_without_convolutions_only_the_context():
    assert gs.peak("resnet18", batch=2, target="cpu").unknown == ()
    (context,) = gs.peak("gpt2", batch=1, seq=8, gpu="t4").unknown
    assert not context.inside
    assert context.least == context.most


def test_no_other_figure_holds_what_is_unknown():
    source = source_of("vgg16", batch=8)
    report = gs.peak("vgg16", batch=8, optimizer="sgd", allocator="torch")
    first, steady = (gs.simulate(step) for step in source.steps(SGD))
    assert report.unknown == unknown_of((first, steady), allocator=TorchCaching())
    held = [step.reserved_peak_bytes or 0 for step in (report.first, report.steady)]
    assert max(held) == need_of(source, SGD)


def test_json_and_text_of_a_peak_say_it_as_lines_of_their_own():
    report = gs.peak("resnet18", batch=2, gpu="t4", allocator="torch")
    inside, outside = json.loads(report.to_json())["unknown"]
    assert (inside["least"], inside["inside"], outside["inside"]) == (0, True, False)
    text = " ".join(report_text(report).split())
    assert "workspaces of cuDNN's convolutions: unknown" in text
    assert "outside of PyTorch's allocator" in text


def test_fit_says_when_its_answer_depends_on_the_algorithm():
    source = source_of("vgg16", batch=32)
    need = need_of(source, SGD)
    first, steady = (gs.simulate(step) for step in source.steps(SGD))
    most = convolution_most((first, steady), TorchCaching())
    for memory, fits, perhaps in ((need - 1, False, False), (need, False, True), (need + most, True, False)):
        answer = fit_of(source, SGD, memory=memory, context=(0, 0))
        assert (answer.fits, answer.perhaps) == (fits, perhaps)
        assert answer.margin_bytes == memory - need - most
        depends = [note for note in answer.notes if "depends on the workspaces" in note]
        assert bool(depends) == perhaps
    assert json.loads(answer.to_json())["unknown"][0]["most"] == most

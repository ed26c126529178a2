"""Channel norms: what they save and their backward temporaries, against torch."""

from __future__ import annotations

import pytest
from oracle import assert_close

import graphsim as gs
from graphsim.errors import ScheduleError
from graphsim.sources.spec import parse_spec

torch = pytest.importorskip("torch")
nn = torch.nn

SPEC = """
[inputs]
x = {{ shape = [4, 16, 12, 12] }}
y = {{ shape = [4, 16, 12, 12] }}
[model]
layers = [
  {{ op = "conv2d", out = 16, kernel = 1, bias = false }},
  {norm},
  "tanh",
  {{ op = "mse", with = "y" }},
]
"""


@pytest.mark.parametrize(
    ("norm", "module"),
    [
        ('"batch_norm"', lambda: nn.BatchNorm2d(16)),
        ('{ op = "batch_norm", affine = false }', lambda: nn.BatchNorm2d(16, affine=False)),
        ('{ op = "batch_norm", track = false }', lambda: nn.BatchNorm2d(16, track_running_stats=False)),
        ('{ op = "group_norm", groups = 4 }', lambda: nn.GroupNorm(4, 16)),
        ('"instance_norm"', lambda: nn.InstanceNorm2d(16)),
        ('{ op = "instance_norm", affine = true }', lambda: nn.InstanceNorm2d(16, affine=True)),
    ],
    ids=["batch", "batch without affine", "batch without statistics", "group", "instance", "instance with affine"],
)
def test_a_norm_allocates_what_torch_allocates(norm, module):
    net = nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), module(), nn.Tanh())
    x, y = torch.randn(4, 16, 12, 12), torch.randn(4, 16, 12, 12)
    # 10 kB: the reduction buffer of the convolution's backward.
    assert_close(lambda: nn.functional.mse_loss(net(x), y), SPEC.format(norm=norm), within=10_500)


def test_batch_norm_owns_running_statistics_as_buffers():
    graph = parse_spec(SPEC.format(norm='{ op = "batch_norm", name = "bn" }'))
    buffers = {t.name: t.nbytes for t in graph.tensors.values() if t.role is gs.Role.BUFFER}
    assert buffers == {"bn.running_mean": 64, "bn.running_var": 64, "bn.num_batches_tracked": 8}


def test_recomputing_batch_norm_is_possible_but_not_a_second_update_of_its_statistics():
    step = gs.training_step(parse_spec(SPEC.format(norm='{ op = "batch_norm", name = "bn" }')), optimizer="sgd")
    names = [op.name for op in step.ops]
    norm, update = (names.index(f"bn.{kind}") for kind in ("batch_norm", "update_running_stats"))
    again = [*names[: norm + 2], names[norm], *names[norm + 2 :]]
    assert update == norm + 1
    assert gs.simulate(step, gs.Schedule.of(step, again)).peak > 0
    twice = [*names[: norm + 2], names[update], *names[norm + 2 :]]
    with pytest.raises(ScheduleError, match="update_running_stats"):
        _ = gs.simulate(step, gs.Schedule.of(step, twice)).peak


def test_evaluation_uses_the_running_statistics():
    step = gs.training_step(parse_spec(SPEC.format(norm='"batch_norm"')), mode="evaluation")
    assert not [op for op in step.ops if op.kind == "update_running_stats"]

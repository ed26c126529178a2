"""Scratch of CUDA kernels: published peaks of real GPUs, to the byte, and specs beside captures."""

from __future__ import annotations

import re
import sys
from functools import partial
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import graphsim as gs  # noqa: E402
from graphsim.core.devices import find_device  # noqa: E402
from graphsim.sources import Steps  # noqa: E402
from graphsim.sources.spec import parse_spec  # noqa: E402
from graphsim.sources.torch import cuda  # noqa: E402
from graphsim.sources.torch.capture import capture, gpu  # noqa: E402
from graphsim.sources.torch.kernels import WORKSPACE  # noqa: E402
from graphsim.sources.torch.kernels_cuda_none import NONE, UNKNOWN  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import workloads_liger  # noqa: E402

aten = torch.ops.aten
SCRATCH = WORKSPACE["cuda"]

PUBLISHED = [  # linkedin/Liger-Kernel, benchmark/data/all_benchmark_data.csv: what PyTorch's own kernel takes
    ("group_norm", "full C=32 M=128,H=512,channels_per_group=4,dtype=torch.float32", "B200", 42012672),
    ("megatron_rms_norm", "full H=1024 S=4096,B=1", "H100 80GB HBM3", 41966592),
    (
        "fused_neighborhood_attention",
        "full seq_len=256 batch_size=2,hidden_size=512,num_heads=8,dtype=torch.float32",
        "H100 80GB HBM3",
        105996288,
    ),
]


def peak(model: str, config: str, card: str) -> int:
    calls = workloads_liger.WORKLOADS[model](workloads_liger.parse(config))
    options = {"optimizer": None, "loss": None, "step": lambda *_: next(calls), "device": find_device(card)}
    made = capture(nn.Identity(), torch.zeros(0), **options)
    report = gs.peak(Steps(made.graph(first=True), made.graph()), allocator="torch")
    assert report.steady.allocated_peak_bytes is not None
    return report.steady.allocated_peak_bytes


@pytest.mark.parametrize(("model", "config", "card", "measured"), PUBLISHED, ids=[row[0] for row in PUBLISHED])
def test_a_published_peak_is_met_to_the_byte(model, config, card, measured):
    assert peak(model, config, card) == measured


def test_published_peaks_of_embeddings_are_as_far_apart_as_measured():
    """The benchmark began with memory left over, the same for every size of the table."""
    measured = {1024: 15087048704, 16384: 16345708544, 131072: 23861901312}
    config = "full V={} B=8,T=2048,D=4096,dtype=torch.float32"
    left = {measured[rows] - peak("embedding", config.format(rows), "A100-SXM4-80GB") for rows in measured}
    assert len(left) == 1


def test_few_indices_are_summed_without_scratch():
    table = (torch.empty(3072, 8), torch.empty(3072, dtype=torch.int64), 100, -1, False)
    assert SCRATCH[aten.embedding_dense_backward.default](table, None) == 0
    more = (torch.empty(3073, 8), torch.empty(3073, dtype=torch.int64), *table[2:])
    parts = 307 + 100
    assert SCRATCH[aten.embedding_dense_backward.default](more, None) == 8 * (3 * 3073 + 200 + parts) + parts * 8 * 4


@pytest.mark.parametrize(
    ("matrix", "copied"),
    [
        (torch.empty(4, 6), False),
        (torch.empty(6, 4).t(), False),
        (torch.empty(4, 12)[:, :6], False),
        (torch.empty(1, 1).expand(4, 6), True),
        (torch.empty(4, 12)[:, ::2], True),
    ],
    ids=["rows", "columns", "a part", "expanded", "every other"],
)
def test_a_product_copies_what_cublas_cannot_read(matrix, copied):
    assert SCRATCH[aten.mm.default]((matrix, torch.empty(6, 5)), None) == (4 * 6 * 4 if copied else 0)


def test_gradients_of_layer_norm_are_summed_in_parts_where_rows_are_many():
    """One partial sum for each block of 32 rows, at most 32,768 blocks in all (A100: 108 multiprocessors)."""
    text = """
[inputs]
x = {{ shape = [{rows}, 64] }}
y = {{ shape = [{rows}, 64] }}
[model]
layers = [{{ op = "linear", out = 64 }}, "layer_norm", {{ op = "mse", with = "y" }}]
"""

    def scratch(rows):
        step = gs.training_step(parse_spec(text.format(rows=rows)), optimizer="sgd", target="cuda")
        (backward,) = (op for op in step.ops if op.kind == "layer_norm_backward")
        return backward.workspace

    assert scratch(65536) == 0
    assert scratch(65600) == 2 * 2050 * 64 * 4


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("first", ["batch", "steps"])
def test_a_recurrent_layer_is_one_op_of_cudnn_in_spec_and_capture(kind, first):
    """The reserve of 4 layers of 320 units for 25,000 rows: pytorch/pytorch issue 2895."""
    layer = {"lstm": nn.LSTM, "gru": nn.GRU}[kind]
    options = {"optimizer": None, "loss": lambda y: y[0].sum(), "step": None, "device": gpu("cuda", "")}
    made = capture(
        lambda: layer(123, 320, 4, batch_first=first == "batch"), lambda: torch.randn(250, 100, 123), **options
    ).graph()
    (forward,) = (op for op in made.ops if op.kind == "_cudnn_rnn")
    reserve = max(made.tensors[name].nbytes for name in forward.outputs if made.tensors[name].dtype == "uint8")
    assert reserve == {"lstm": 736_000_000, "gru": 864_000_000}[kind]
    (backward,) = (op for op in made.ops if op.kind == "_cudnn_rnn_backward")
    x, y = 250 * 100 * 123 * 4, 250 * 100 * 320 * 4
    states = (2 if kind == "lstm" else 1) * 4 * {"batch": 250, "steps": 100}[first] * 320 * 4
    assert forward.workspace == (x if first == "batch" else 0)
    assert backward.workspace == states + (x + y if first == "batch" else y)


def test_a_recurrent_layer_without_cudnn_takes_its_own_path():
    with torch.backends.cudnn.flags(enabled=False):
        made = gs.from_torch(lambda: nn.GRU(4, 8), torch.randn(3, 2, 4), loss=lambda y: y[0].sum(), target="cuda")
    assert "_cudnn_rnn" not in {op.kind for op in made.ops}


def test_every_rule_names_its_source_and_no_op_has_two():
    """docs/hooks.py writes a page of what the rules say."""
    for func, rule in SCRATCH.items():
        said = getattr(rule.func if isinstance(rule, partial) else rule, "__doc__", "") or ""
        assert re.search(r"\.(cu|cuh|cpp|h)\b|graphsim\.step\.", said), func
    listed = [name for table in (NONE, UNKNOWN) for names in table.values() for name in names]
    assert len(listed) == len(set(listed))
    assert not [name for name in listed if not hasattr(aten, name)]
    copying = {"native_layer_norm", "nll_loss_backward", "nll_loss2d_backward", "native_batch_norm"}
    assert {func._schema.name.removeprefix("aten::") for func in SCRATCH} & set(listed) <= copying


def test_a_capture_says_where_the_scratch_of_a_kernel_is_not_known():
    class Solve(nn.Module):
        def forward(self, x):
            return torch.linalg.inv(x)

    steps = gs.from_torch(
        Solve(), lambda: torch.eye(4).requires_grad_(), optimizer=None, loss=lambda y, *_: y.sum(), target="cuda"
    )
    assert any("linalg_inv_ex are not known" in note for note in steps.attributes["warnings"])


def indexed(rows, *shape, accumulate=True):
    x, values = torch.empty(rows, 8), torch.empty(*shape, 8)
    return SCRATCH[aten.index_put_.default]((x, [torch.empty(*shape, dtype=torch.int64)], values, accumulate), x)


def test_what_is_added_at_indices_is_sorted_first():
    assert indexed(100, 500, accumulate=False) == 0
    assert indexed(100, 500) == 4 * 8 * 500  # an order of 7 bits needs one pass
    assert indexed(1000, 500) == 6 * 8 * 500


@pytest.mark.parametrize(
    ("shape", "factor"),
    [((64, 4096), 0), ((1, 5000), 16 + 4), ((100, 5000), 24 + 2 * 4), ((128, 5000), 16 + 4)],
    ids=["in a block", "one row", "rows as one", "segments"],
)
def test_sorting_takes_second_buffers_where_a_block_does_not_do(shape, factor):
    x = torch.empty(shape)
    assert SCRATCH[aten.sort.default]((x,), None) == factor * x.numel()


def test_norms_of_a_list_take_a_number_for_each_chunk_of_the_longest():
    """As clip_grad_norm_ asks for them."""
    tensors = [torch.empty(10), torch.empty(3 * 65536 + 1)]
    assert SCRATCH[aten._foreach_norm.Scalar]((tensors, 2), None) == 2 * 4 * 4


def test_rolling_two_dimensions_has_a_tensor_between():
    x = torch.empty(2, 8, 8)
    assert SCRATCH[aten.roll.default]((x, [1, 1], [1, 2]), None) == x.nbytes
    assert SCRATCH[aten.roll.default]((x, [1], [1]), None) == 0


def test_a_sum_by_channels_in_channels_last_has_a_buffer():
    x = torch.empty(8, 64, 64, 64).to(memory_format=torch.channels_last)
    with cuda.pretended(find_device("a100-80g")):
        assert SCRATCH[aten.sum.dim_IntList]((x, [0, 2, 3]), torch.empty(64)) > 4 * 64
        assert SCRATCH[aten.sum.dim_IntList]((x, [1]), torch.empty(8, 64, 64)) == 0

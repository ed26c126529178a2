"""The roofline: what an op takes at least, from its flops, its bytes and a data sheet."""

from __future__ import annotations

import pytest

import graphsim as gs
from graphsim.core.devices import DEVICES, op_seconds
from graphsim.core.graph import Graph, Op, Tensor
from graphsim.core.simulation import cost_unit, op_costs, with_costs
from graphsim.errors import UnknownNameError

A100 = DEVICES["a100-80g"]


def seconds(kind: str, dtype: str, flops: int, moved: int) -> float:
    graph = Graph([Op("x", kind, (), ("x",), flops=flops, moved=moved)], [Tensor("x", (10,), dtype)])
    return float(op_seconds(graph, A100)[0])


def test_arithmetic_runs_at_the_peak_rate_of_its_type_and_units():
    work = 10**15
    assert seconds("addmm", "float32", work, 1) == pytest.approx(work / 19.5e12)
    assert seconds("addmm", "bfloat16", work, 1) == pytest.approx(work / 312e12)
    assert seconds("convolution", "float32", work, 1) == pytest.approx(work / 156e12), "cuDNN may use TF32"
    assert seconds("mm", "float64", work, 1) == pytest.approx(work / 9.7e12)
    assert seconds("gelu", "float16", work, 1) == pytest.approx(work / 19.5e12), "no matrix units"


def test_little_arithmetic_waits_for_memory_and_a_copy_reads_and_writes():
    assert seconds("gelu", "float32", 8, 2039 * 10**9) == pytest.approx(1.0)
    assert seconds("cat", "float32", 0, 0) == pytest.approx(2 * 40 / 2039e9)
    assert seconds("hold", "float32", 0, 0) == 0


def test_a_matrix_product_of_a_real_step_takes_its_flops_over_the_rate():
    step = gs.training_step(gs.load("gpt2", batch=8), precision="bf16", device="h100-80g")
    op = next(op for op in step.ops if op.name == "h.0.c_fc.addmm")
    assert op.flops == 2 * 8 * 1024 * 768 * 3072
    assert op_costs(step)[step.ops.index(op)] == pytest.approx(op.flops / 989e12)


def test_rates_grow_as_types_shrink_and_memory_is_what_the_card_is_called():
    for device in DEVICES.values():
        assert device.fp64 <= device.fp32 <= device.tf32 <= device.half <= device.fp8, device.name
        assert 100e9 < device.bandwidth < 10e12
    assert DEVICES["h100-80g"].memory == 80 * 2**30


def test_costs_come_from_times_then_the_device_then_flops_then_one_per_op():
    tensors = [Tensor("a", (1,)), Tensor("b", (1,))]
    ops = [Op("a", "n", (), ("a",), flops=7), Op("b", "m", ("a",), ("b",))]
    graph = Graph(ops, tensors)
    assert op_costs(graph).tolist() == [7, 0]
    assert op_costs(with_costs(graph, "unit")).tolist() == [1, 1]
    assert op_costs(with_costs(graph, {"a": 0.5, "m": 2.0})).tolist() == [0.5, 2.0]
    assert op_costs(Graph([Op("a", "n", (), ("a",))], tensors[:1])).tolist() == [1]
    on_gpu = Graph(ops, tensors, attributes={"training": {"target": "cuda", "device": "t4"}})
    assert op_costs(on_gpu).tolist() == op_seconds(graph, DEVICES["t4"]).tolist()
    assert op_costs(with_costs(on_gpu, "flops")).tolist() == [7, 0]
    assert op_costs(with_costs(on_gpu, "h200")).tolist() == op_seconds(graph, DEVICES["h200"]).tolist()
    priced = [with_costs(on_gpu, costs) for costs in ("flops", "h200", "unit", {"a": 0.5})]
    assert [cost_unit(each) for each in (graph, on_gpu, *priced)] == ["flops", "seconds", "flops", "seconds", "ops", ""]
    with pytest.raises(UnknownNameError, match="unit"):
        with_costs(graph, "unti")

"""The roofline: what an op takes at least, from its flops, its bytes and a data sheet."""

from __future__ import annotations

import pytest

import graphsim as gs
from graphsim.core.devices import DEVICES, NOMINAL, catalogue, device_of, op_seconds
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


def test_rates_grow_as_types_shrink():
    for device in catalogue():
        assert device.fp64 <= device.fp32 <= device.tf32 <= device.half <= device.fp8, device.name
        assert 100e9 < device.bandwidth < 10e12


def test_memory_is_what_drivers_report_not_what_the_box_says():
    # T4 and A100: messages of PyTorch ("14.56 GiB total capacity"); A100 40 GB: 42,298,834,944 bytes by deviceQuery.
    assert device_of("t4", "cuda").memory == pytest.approx(14.56 * 2**30, abs=2**23)
    assert device_of("a100-40g", "cuda").memory == 42_298_834_944 // 2**20 * 2**20
    for device in catalogue():
        if device.memory_source == NOMINAL:
            assert device.memory == device.sold_as * 2**30
        else:  # GB and GiB are not told apart on boxes; ECC takes up to a sixteenth
            assert 0.9 * device.sold_as * 2**30 < device.memory < device.sold_as * 2**30, device.name


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("T4", "t4"),
        ("Tesla T4", "t4"),
        ("RTX 4090", "rtx4090"),
        ("4090", "rtx4090"),
        ("NVIDIA GeForce RTX 3060", "rtx3060"),
        ("A100-SXM4-80GB", "a100-80g"),
        ("NVIDIA A100 80GB PCIe", "a100-80g"),
        ("H100", "h100-80g"),
        ("NVIDIA H100 80GB HBM3", "h100-80g"),
        ("h100 PCIe", "h100-pcie"),
        ("MI300X", "mi300x"),
        ("RTX 6000 Ada Generation", "rtx6000ada"),
        ("a6000", "rtxa6000"),
    ],
)
def test_cards_are_found_by_the_names_that_people_and_drivers_give_them(said: str, meant: str):
    assert device_of(said, "cuda").name == meant


def test_a_name_that_leaves_the_memory_open_means_the_smaller_card():
    assert device_of("a100", "cuda").name == "a100-40g"
    assert device_of("V100", "cuda").name == "v100-16g"


@pytest.mark.parametrize("name", ["t44", "RTX 3060 Ti", "rtx4060 laptop", "80GB", "nvidia", "rtx6000", "mi300"])
def test_a_card_that_is_not_in_the_catalogue_is_not_taken_for_another(name: str):
    with pytest.raises(UnknownNameError, match=r"did you mean|known: "):
        device_of(name, "cuda")


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
    assert op_costs(with_costs(on_gpu, "H200")).tolist() == op_seconds(graph, DEVICES["h200"]).tolist()
    with pytest.raises(UnknownNameError, match="unit"):
        with_costs(graph, "unti")

"""The buffer of a reduction on CUDA: sizes worked out by hand from ATen/native/cuda/Reduce.cuh.

That real kernels take it is what the published rows of nn.TransformerEncoder show (bench/gpu_rows.py): with it they
are met to 0.4 %, without it to 4.6 %.
"""

from __future__ import annotations

import pytest

import graphsim as gs
from graphsim.step.ops.reduction import reduction_scratch, resident_threads, strides_in_order

A100, T4 = (108, (8, 0)), (40, (7, 5))


def scratch(shape, reduced, *, card=A100, width=4, strides=None, accumulator=4):
    processors, capability = card
    strides = strides or strides_in_order(shape)
    return reduction_scratch(shape, strides, reduced, width, accumulator, processors, resident_threads(capability))


def test_rows_are_summed_by_blocks_that_meet_in_a_buffer():
    """4,096 rows: 4 rows of threads sum 1,024 each, so 64 blocks share an output; 32 threads have 4 outputs each."""
    assert scratch((4096, 768), {0}) == 4 * 768 * 64 * (32 * 4)
    assert scratch((2048, 768), {0}) == 4 * 768 * 32 * (32 * 4)


def test_few_rows_need_no_buffer():
    assert scratch((1024, 768), {0}) == 4 * 768 * 16 * (32 * 4)
    assert scratch((1023, 768), {0}) == 4 * 768 * 16 * (32 * 4)
    assert scratch((1020, 768), {0}) == 0  # 255 values for each thread


def test_a_small_card_is_full_with_fewer_blocks():
    """A T4 runs 40 x 8 blocks of 128 threads at a time, of which 24 stand side by side on 3,072 outputs."""
    assert scratch((4096, 3072), {0}, card=T4) == 4 * 3072 * 14 * (32 * 4)


def test_outputs_that_no_vector_divides_have_a_thread_each():
    assert scratch((4096, 77), {0}) == 4 * 77 * 16 * 32 * 1


def test_a_reduction_along_rows_has_a_buffer_of_one_number_for_each_block():
    """Of 10^8 numbers, by blocks of 512 threads: at most 256 for each thread, so 763 blocks."""
    assert scratch((10**8,), {0}) == 4 * 763
    assert scratch((8192, 4096), {1}) == 0


def test_a_bias_of_a_convolution_is_summed_along_rows_in_order_and_across_in_channels_last():
    shape = (32, 64, 56, 56)
    assert scratch(shape, {0, 2, 3}) < 10_000
    last = (64 * 56 * 56, 1, 64 * 56, 64)
    assert scratch(shape, {0, 2, 3}, strides=last) > 4 * 64 * 32 * 4


def test_a_spec_holds_the_buffer_while_a_bias_is_summed():
    steps = {}
    for device in ("a100-80g", "t4"):
        graph = gs.training_step(gs.load("gpt2", batch=8, seq=512, layers=1), target="cuda", device=device)
        steps[device] = {op.workspace for op in graph.ops if op.kind == "sum"}
    assert max(steps["a100-80g"]) == scratch((4096, 3072), {0})
    assert max(steps["t4"]) == scratch((4096, 3072), {0}, card=T4)


@pytest.mark.parametrize("capability", [(7, 0), (9, 0), (10, 0)])
def test_large_cards_hold_2048_threads_a_multiprocessor(capability):
    assert resident_threads(capability) == 2048

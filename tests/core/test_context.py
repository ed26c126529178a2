"""What is outside of PyTorch's allocator: figures where somebody measured, a range where nobody did."""

from __future__ import annotations

import pytest

from graphsim.core.context import CONTEXT, TABLE, context_of
from graphsim.core.devices import DEVICES

MIB = 2**20
WHOLE = [one for one in TABLE if len(one.libraries) == 2]
"""Figures of processes that trained with both libraries."""


def test_every_figure_is_of_a_card_of_the_catalogue_and_says_its_source():
    for one in TABLE:
        assert one.card in DEVICES
        assert one.source
        assert one.software
        assert 0 < one.least <= one.most


def test_a_card_that_was_measured_with_this_software_has_a_figure():
    assert context_of("t4", cudnn=True).least == context_of("t4", cudnn=True).most == 141_426_688
    assert context_of("t4", cudnn=False).most == 131 * MIB
    assert "CUDA 12.8" in context_of("t4").source


def test_older_software_says_what_it_takes_at_most():
    assert (context_of("a100-40g", cudnn=False).least, context_of("a100-40g", cudnn=False).most) == (
        135 * MIB,
        1429 * MIB,
    )
    assert context_of("a100-40g", cudnn=True).most == 1820 * MIB


@pytest.mark.parametrize("card", ["", "h100-80g", "rtx4090", "v100-32g"])  # what is known of a V100 loads no library
def test_elsewhere_it_is_the_range_of_all_that_trained(card):
    context = context_of(card)
    assert (context.least, context.most) == CONTEXT
    assert min(one.least for one in WHOLE) >= CONTEXT[0] - MIB
    assert max(one.most for one in WHOLE) == CONTEXT[1]

"""Links to the host: the rates that the standards state, and the ways to name one."""

from __future__ import annotations

import pytest

from graphsim.core.devices import DEVICES
from graphsim.core.link import LINKS, parse_link
from graphsim.errors import GraphSimError

A100 = DEVICES["a100-80g"]


@pytest.mark.parametrize(
    ("name", "published"),  # GB/s each way, as PCI-SIG's and NVIDIA's pages state them
    [("pcie3x16", 15.754), ("pcie4x16", 31.508), ("pcie5x16", 63.015), ("pcie4x8", 15.754), ("nvlink-c2c", 450)],
)
def test_a_link_carries_what_its_standard_says(name, published):
    assert LINKS[name] / 1e9 == pytest.approx(published, rel=1e-4)


@pytest.mark.parametrize(
    ("text", "rate"),
    [("16GB/s", 16e9), ("12.5 GB / s", 12.5e9), ("16GiB/s", 16 * 2**30), ("PCIe4x16", LINKS["pcie4x16"])],
)
def test_a_link_is_given_by_its_rate_or_its_name(text, rate):
    assert parse_link(text, A100) == rate


@pytest.mark.parametrize(
    ("gpu", "link"),
    [
        *[(gpu, "pcie3x16") for gpu in ("p100", "v100-16g", "t4")],
        *[(gpu, "pcie4x16") for gpu in ("rtx3090", "l4", "rtx4090", "a100-80g")],
        *[(gpu, "pcie5x16") for gpu in ("h100-80g", "b200", "rtx5090", "mi300x")],
        ("rtx4060", "pcie4x8"),
    ],
)
def test_every_gpu_has_the_link_of_its_data_sheet(gpu, link):
    assert parse_link("gpu", DEVICES[gpu]) == LINKS[link]


@pytest.mark.parametrize("text", ["", "16GB", "fast", "0GB/s", "-1GB/s", "pcie9x16", "16 apples/s"])
def test_what_is_no_link_is_refused(text):
    with pytest.raises(GraphSimError):
        parse_link(text, A100)


def test_every_device_has_a_link():
    assert {device.link for device in DEVICES.values()} <= set(LINKS)

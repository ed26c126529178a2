"""The corpus of files that once broke something: each is refused in one line, or answered."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import graphsim as gs
from graphsim.answers.diff import is_report, load_report
from graphsim.answers.peak import peak
from graphsim.core.graph import Graph, Op, Role, Tensor
from graphsim.errors import GraphSimError, SpecError
from graphsim.show.reporters.text import Text
from graphsim.sources import load

CORPUS = Path(__file__).parent / "data" / "robust"
REFUSED = {
    "attributes-batch-null.json": "'batch' must be",
    "attributes-params-float.json": "'params' must be an object",
    "dup-node.json": "the node 'a' stands twice",
    "duplicate-keys.json": "the key 'bytes' stands twice",
    "empty-graph.json": "no nodes",
    "empty.log": "no operators",
    "escape-node.json": "an integer attribute 'bytes'",
    "hf-arch-int.json": "not a node-link graph",
    "hf-quant.json": "not a node-link graph",
    "result-huge.json": "not a node-link graph",
    "spec-dtype-list.toml": "unknown dtype []",
    "spec-index.toml": "'a' has outputs 0 ... 0",
}
PEAKS = {
    "escape-peak.json": 100,
    "only-a-hold.json": 7,
    "only-a-release.json": 7,
    "release-of-an-input.json": 1,
    "surrogate-name.json": 2150 + 2960,
    "zero-bytes.json": 0,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_refused_in_one_line(name: str):
    with pytest.raises(GraphSimError) as error:
        load(str(CORPUS / name))
    assert REFUSED[name] in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_constant_is_refused_in_one_line():
    pytest.importorskip("onnx")
    with pytest.raises(SpecError, match="damaged: the value of the constant is no tensor"):
        load(str(CORPUS / "onnx-bytes-attribute.onnx"))


@pytest.mark.parametrize("name", PEAKS)
def test_what_is_odd_but_right_is_answered(name: str):
    report = peak(str(CORPUS / name))
    assert report.steady.peak_bytes == PEAKS[name]
    assert report.spec in Text(width=80)(report)


def test_a_parameter_of_a_petabyte_is_held_by_every_allocator():
    path = str(CORPUS / "torch-pool-2e61.json")
    for allocator in ("exact", "torch", "cupy", "bfc", "arena"):
        report = peak(path, allocator=allocator)
        assert report.steady.reserved_peak_bytes >= 2**50, allocator


def test_the_corpus_is_complete():
    others = {"onnx-bytes-attribute.onnx", "torch-pool-2e61.json", "escape-name.toml", "slow-20000-layers.toml"}
    assert {file.name for file in CORPUS.iterdir()} == {*REFUSED, *PEAKS, *others}


def test_a_saved_result_beyond_what_a_graph_may_have_is_refused():
    path = str(CORPUS / "result-huge.json")
    assert is_report(path)
    with pytest.raises(SpecError, match=r"no number of bytes|no table of bytes|no list of tensors"):
        load_report(path)


@pytest.mark.parametrize("suffix", [".toml", ".json", ".log", ".jsonl", ".onnx"])
def test_pipes_devices_and_folders_are_not_read(tmp_path: Path, suffix: str):
    pytest.importorskip("onnx")
    pipe, device, folder = (tmp_path / f"{name}{suffix}" for name in ("pipe", "device", "folder"))
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    folder.mkdir()
    for path, kind in ((pipe, "a pipe"), (device, "a device"), (folder, "a directory")):
        with pytest.raises(SpecError, match=f"is {kind}"):
            load(str(path))


@pytest.mark.parametrize("name", ["escape-peak.json", "escape-name.toml"])
def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path, name: str):
    marked = tmp_path / name
    marked.write_bytes(b"\xef\xbb\xbf" + (CORPUS / name).read_bytes())
    assert load(str(marked)) == load(str(CORPUS / name))


class Counting(str):
    """A name that counts how often it is compared."""

    comparisons = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Counting.comparisons += 1
        return str.__eq__(self, other)


def test_checking_a_graph_takes_steps_that_grow_with_its_operands():
    def comparisons(operands: int) -> int:
        names = [f"p{i}" for i in range(operands)]
        tensors = [Tensor(name, (1,), role=Role.PARAMETER) for name in names]
        read, mutated = (tuple(map(Counting, names)) for _ in range(2))
        Counting.comparisons = 0
        Graph([Op("update", "foreach", read, (), mutates=mutated)], tensors)
        return Counting.comparisons

    assert comparisons(4000) <= 2.5 * comparisons(2000) + 100


def test_a_spec_of_twenty_thousand_layers_is_read():
    graph = gs.load(str(CORPUS / "slow-20000-layers.toml"))
    assert len(graph.ops) == 19_991

"""Every reader answers any bytes with what it reads or with one error of ours, in bounded time.

The corpus in tests/data/robust seeds them. Longer: ``python -m pytest tests/fuzz --hypothesis-profile=fuzz``.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphsim.answers.diff import diff, load_report
from graphsim.answers.explain import explain
from graphsim.answers.sweep.journal import opened
from graphsim.answers.sweep.listing import read_list
from graphsim.core.graph import Graph
from graphsim.core.simulation import simulate
from graphsim.errors import GraphSimError
from graphsim.memory.allocators.torch import TorchCaching
from graphsim.options import configure
from graphsim.show.exports.snapshot import snapshot
from graphsim.sources import load
from graphsim.units import parse_budget, parse_bytes

CORPUS = Path(__file__).parents[1] / "data" / "robust"
SECONDS = 2.0
"""That a file of at most 64 KiB may take."""

LIST = b"source,batch,gpu\nlenet5,4,t4\nlenet5,=8,\n"
POINTS = b'[[point]]\nsource = "lenet5"\nbatch = 4\n'
LOG = b"""{"INSTRUCTION": "CONSTANT", "NAME": "x"}
{"INSTRUCTION": "MEMORY", "NAME": "x", "MEMORY": "40"}
{"INSTRUCTION": "CALL", "NAME": "relu", "ARGS": ["x"], "RESULT": ["y"], "TIME": "3"}
{"INSTRUCTION": "MEMORY", "NAME": "y", "MEMORY": "40"}
{"INSTRUCTION": "ALIAS", "NAME": "y", "ALIAS": "-1"}
{"INSTRUCTION": "MUTATE", "NAME": "add_", "ARGS": ["y", "x"], "MUTATE": [0], "TIME": "1"}
{"INSTRUCTION": "COPY", "DST": "z", "SRC": "y"}
{"INSTRUCTION": "RELEASE", "NAME": "y"}
"""
JOURNAL = b'{"journal": "graphsim-sweep-journal/1"}\n{"key": "a", "found": {"x": 1}, "sha256": "0123456789abcdef"}\n'
MESSAGE = b"""CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 11.91 GiB of which 0 bytes
is free. this process has 11.51 GiB memory in use. 9.00 GiB allowed; Of the allocated memory 11.18 GiB is allocated by
PyTorch, and 219.44 MiB is reserved by PyTorch but unallocated. (GPU 0; 3.94 GiB total capacity; 3 GiB cached)"""
SNAPSHOT = snapshot(simulate(load("layered:12")), TorchCaching())


def corpus(*suffixes: str) -> list[bytes]:
    return [file.read_bytes() for file in sorted(CORPUS.iterdir()) if file.suffix in suffixes]


def simulated(path: str) -> None:
    graph = load(path)
    assert isinstance(graph, Graph)
    if len(graph.ops) < 500:
        run = simulate(graph)
        assert run.peak >= 0
        TorchCaching()(run.trace)


def compared(path: str) -> None:
    report = load_report(path)
    diff(report, report).exceeds("1%")


def resumed(path: str) -> None:
    with opened(Path(path)) as journal:
        journal.add("new", {"x": 1})


def explained(path: str) -> None:
    str(explain(Path(path)))


READERS: dict[str, tuple[str, Callable[[str], object], list[bytes]]] = {
    "spec": (".toml", simulated, [seed for seed in corpus(".toml") if b"19990" not in seed]),
    "graph": (".json", simulated, corpus(".json")),
    "log": (".log", simulated, [LOG]),
    "onnx": (".onnx", simulated, corpus(".onnx")),
    "report": (".json", compared, [(CORPUS / "result-huge.json").read_bytes()]),
    "list": (".csv", lambda path: read_list(Path(path)), [LIST]),
    "points": (".toml", lambda path: read_list(Path(path)), [POINTS]),
    "journal": (".journal", resumed, [JOURNAL]),
    "snapshot": (".pickle", explained, [pickle.dumps(SNAPSHOT, protocol) for protocol in (2, 4)]),
    "message": (".txt", explained, [MESSAGE]),
}

WORDS = [
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b"null",
    b"NaN",
    b"-1",
    b"1e400",
    b"9" * 30,
    b"\xff",
    b"\xef\xbb\xbf",
    b"\0",
    b"=",
]
EDIT = st.tuples(st.integers(0, 2**16), st.integers(0, 40), st.one_of(st.sampled_from(WORDS), st.binary(max_size=8)))


@st.composite
def contents(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Draw one of *seeds* with stretches of it replaced, dropped, or doubled."""
    content = draw(st.sampled_from([*seeds, b""]))
    for at, length, new in draw(st.lists(EDIT, max_size=6)):
        begin = at % (len(content) + 1)
        content = content[:begin] + new + content[begin + length :]
    if draw(st.booleans()):
        begin, end = sorted(draw(st.integers(0, len(content))) for _ in range(2))
        content = content[:end] + content[begin:]
    return content[: 2**16]


@pytest.mark.parametrize("name", READERS)
@given(data=st.data())
def test_a_reader_reads_or_refuses(name: str, data: st.DataObject) -> None:
    suffix, read, seeds = READERS[name]
    content = data.draw(contents(seeds))
    if suffix == ".onnx":
        pytest.importorskip("onnx")
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(content)
        file.flush()
        begin = process_time()
        with suppress(GraphSimError):
            read(file.name)
        assert process_time() - begin < SECONDS


TEXTS = st.one_of(st.text(max_size=60), st.from_regex(r"[\s0-9.]{0,9}[KMGTkmgt]?i?[bBxX%]?[\s\]\[,:=]{0,5}"))


@given(st.one_of(TEXTS, st.lists(TEXTS, max_size=4).map("limit=".join), st.lists(TEXTS).map(",roundup=".join)))
def test_options_and_sizes_are_read_or_refused(text: str) -> None:
    for read in (parse_bytes, lambda t: parse_budget(t, 10**9), lambda t: configure(TorchCaching, t)):
        with suppress(GraphSimError):
            assert read(text) is not None

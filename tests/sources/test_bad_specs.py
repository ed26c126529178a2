"""Malformed specs: each gets one clear error that names the file and the place, and nothing else happens."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphsim.core.graph import Graph
from graphsim.errors import GraphSimError, SpecError
from graphsim.sources.spec import load_spec, parse_spec

SPECS = Path(__file__).parent.parent.parent / "specs"

GOOD = """
[params]
batch = 2
p = 0.5
kernel = "same"
[inputs]
x = { shape = ["batch", 3, 8, 8] }
y = { shape = ["batch"], dtype = "int64" }
[block.dense]
args = { out = "required" }
layers = [{ op = "linear", out = "out" }, "relu"]
[model]
layers = [
  { op = "conv2d", out = 4, kernel = 3, name = "conv" },
  "flatten",
  { block = "dense", out = 5, name = "h" },
  { op = "cross_entropy", with = "y" },
]
"""

CONV = '{ op = "conv2d", out = 4, kernel = 3, name = "conv" }'
DENSE = '{ block = "dense", out = 5, name = "h" }'
LOSS = '{ op = "cross_entropy", with = "y" }'

# (what is wrong, replaced text, by what, words of the message)
EDITS = [
    ("not TOML", "[params]", "[params", "not TOML"),
    ("duplicate key", "batch = 2", "batch = 2\nbatch = 3", "not TOML"),
    ("unknown section", "[params]", "[parms]", "'params'"),
    ("section is no table", "[block.dense]", "[[block]]", "[block] must be a table"),
    ("no inputs", "[inputs]", "[params.inputs]", "[params]"),
    ("param is a list", "batch = 2", "batch = [2]", "'batch' must be a number"),
    ("param is a table", "batch = 2", "batch = {}", "'batch' must be a number"),
    ("param is a date", "batch = 2", "batch = 2020-01-01", "'batch' must be a number"),
    ("param name no identifier", "batch = 2", 'batch = 2\n"a b" = 1', "'a b'"),
    ("param is infinite", "p = 0.5", "p = inf", "beyond any real model"),
    ("param is not a number", "p = 0.5", "p = nan", "beyond any real model"),
    ("param is astronomically large", "batch = 2", "batch = " + "9" * 40, "beyond any real model"),
    ("param is beyond formatting", "batch = 2", "batch = " + "9" * 4000, "beyond any real model"),
    ("batch is zero", "batch = 2", "batch = 0", "at least 1"),
    ("batch is negative", "batch = 2", "batch = -4", "at least 1"),
    ("input is no table", 'y = { shape = ["batch"], dtype = "int64" }', "y = 3", "[inputs] y"),
    ("input without shape", 'y = { shape = ["batch"], dtype = "int64" }', "y = {}", "'shape'"),
    ("input shape is a number", '{ shape = ["batch", 3, 8, 8] }', "{ shape = 3 }", "'shape'"),
    ("input of nine dimensions", '{ shape = ["batch", 3, 8, 8] }', "{ shape = [1,1,1,1,1,1,1,1,1] }", "at most 8"),
    ("input extent is a float", '"batch", 3, 8, 8', '"batch", 3.0, 8, 8', "integer"),
    ("input extent is true", '"batch", 3, 8, 8', '"batch", true, 8, 8', "integer"),
    ("input extent is zero", '"batch", 3, 8, 8', '"batch", 3, 0, 8', "at least 1"),
    ("input of too many elements", '"batch", 3, 8, 8', '"batch", 99999999, 99999999, 8', "beyond any real model"),
    ("unknown dtype", '"int64"', '"int46"', "'int64'"),
    ("dtype is a number", '"int64"', "64", "dtype"),
    ("input name with a dot", "x = { shape", '"x.y" = { shape', "no name"),
    ("input name with a control character", "x = { shape", '"x\\u0007" = { shape', "no name"),
    ("input name of 5000 letters", "x = { shape", "x" * 5000 + " = { shape", "no name"),
    ("unknown key of an input", '"int64" }', '"int64", device = "cuda" }', "'device'"),
    ("no layers", "[model]\nlayers", "[model]\nlayer", "'layers'"),
    ("an empty list of layers", "[model]\nlayers = [", "[model]\nlayers = []\noutputs = [", "'layers'"),
    ("layers is no list", "[model]\nlayers = [", "[model]\nlayers = 3\noutputs = [", "'layers'"),
    ("layer is a number", '"flatten"', "7", "layer 1"),
    ("layer is a list", '"flatten"', '["flatten"]', "layer 1"),
    ("unknown op", '"flatten"', '"flaten"', "'flatten'"),
    ("unknown op of 100k letters", '"flatten"', '"' + "f" * 100_000 + '"', "unknown op"),
    ("op and block", CONV, '{ op = "conv2d", block = "dense", out = 4, kernel = 3 }', "either"),
    ("neither op nor block", CONV, '{ name = "conv" }', "either"),
    ("op is a number", '"flatten"', "{ op = 3 }", "either"),
    ("a block's name as op", DENSE, '{ op = "dense", out = 5 }', "write block ="),
    ("unknown block", 'block = "dense"', 'block = "denes"', "'dense'"),
    ("block contains itself", '"relu"]', '"relu", { block = "dense", out = 4 }]', "contain itself"),
    ("block without its argument", DENSE, '{ block = "dense" }', "needs an argument 'out'"),
    ("unknown argument of a block", DENSE, '{ block = "dense", out = 5, bias = 3 }', "'bias'"),
    ("unknown key of a block", "args = { out", "argz = { out", "'args'"),
    ("block argument is a list", DENSE, '{ block = "dense", out = [5] }', "argument"),
    ("missing attribute", CONV, '{ op = "conv2d", out = 4 }', "'kernel' is missing"),
    ("unknown attribute", "kernel = 3,", "kernel = 3, kernal = 3,", "'kernel'"),
    ("attribute is a string", "out = 4", 'out = "four"', "no param 'four'"),
    ("attribute is true", "out = 4", "out = true", "integer"),
    ("attribute is a float", "out = 4", "out = 4.0", "integer"),
    ("attribute is zero", "out = 4", "out = 0", "at least 1"),
    ("attribute is negative", "out = 4", "out = -4", "at least 1"),
    ("attribute is a float param", "out = 4", 'out = "p"', "integer"),
    ("attribute is a name param", "out = 4", 'out = "kernel"', "integer"),
    ("huge channel count", "out = 4", "out = 2147483649", "at most"),
    ("huge kernel", "kernel = 3", "kernel = 2000000000", "conv"),
    (
        "weights beyond any model",
        DENSE,
        '{ op = "linear", out = 2147483648 }, { op = "linear", out = 2147483648 }',
        "beyond any real model",
    ),
    ("division by zero", "out = 4", 'out = "8 // (batch - 2)"', "divides by zero"),
    ("power", "out = 4", 'out = "2 ** 999999999"', "not arithmetic"),
    ("a call", "out = 4", "out = \"__import__('os').getcwd()\"", "not arithmetic"),
    ("an attribute access", "out = 4", 'out = "batch.real"', "not arithmetic"),
    ("overflowing product", "out = 4", 'out = "999999999 * 999999999"', "beyond any real model"),
    ("parenthesis bomb", "out = 4", 'out = "' + "(" * 5000 + "1" + ")" * 5000 + '"', "characters"),
    ("unary bomb", "out = 4", 'out = "' + "-" * 199 + '1"', "at least 1"),
    ("empty expression", "out = 4", 'out = ""', "not arithmetic"),
    ("dangling from", DENSE, '{ block = "dense", out = 5, from = "cnov" }', "'conv'"),
    ("dangling with", 'with = "y"', 'with = "label"', "no layer or input 'label'"),
    ("a later layer", CONV, '{ op = "conv2d", out = 4, kernel = 3, from = "h" }', "before this one"),
    ("from is a number", DENSE, '{ block = "dense", out = 5, from = 3 }', "'from'"),
    ("with is a number", 'with = "y"', "with = 3", "'with'"),
    ("with holds a number", 'with = "y"', 'with = ["y", 3]', "'with'"),
    ("an output that does not exist", 'with = "y"', 'with = "y:1"', "outputs 0 ... 0"),
    ("an output that is no number", 'with = "y"', 'with = "y:a"', "outputs 0 ... 0"),
    ("an output with a huge number", 'with = "y"', 'with = "y:' + "9" * 5000 + '"', "outputs 0 ... 0"),
    ("duplicate layer name", 'name = "h"', 'name = "conv"', "twice"),
    ("layer named like an input", 'name = "h"', 'name = "x"', "twice"),
    ("block name with a dot", "[block.dense]", '[block."a.b"]', "no name"),
    ("layer name is a path", 'name = "h"', 'name = "../h"', "no name"),
    ("layer name is empty", 'name = "h"', 'name = ""', "no name"),
    ("layer name is a number", 'name = "h"', "name = 3", "'name'"),
    ("operand missing", LOSS, '"cross_entropy"', "operands"),
    ("operand too many", '"flatten"', '{ op = "flatten", with = "y" }', "operands"),
    ("shape mismatch", LOSS, '{ op = "cross_entropy", from = "conv", with = "y" }', "cross_entropy"),
    ("sum of shapes that do not broadcast", '"flatten"', '{ op = "add", with = "x" }, "flatten"', "broadcast"),
    ("conv over a vector", DENSE, '{ op = "conv2d", out = 4, kernel = 3 }', "conv2d"),
    ("kernel larger than the image", "kernel = 3", "kernel = 11", "conv"),
    ("groups that do not divide", "kernel = 3,", "kernel = 3, groups = 2,", "groups"),
    ("repeat is negative", 'name = "h"', 'name = "h", repeat = -1', "at least 0"),
    ("repeat is a float", 'name = "h"', 'name = "h", repeat = 1.5', "integer"),
    ("repeat bomb", 'name = "h"', 'name = "h", repeat = 1000000000', "at most"),
    ("frozen is a number", DENSE, '{ op = "linear", out = 4, frozen = 1 }', "'frozen'"),
    ("tie to nothing", DENSE, '{ op = "linear", out = 4, weight = "wte.weight" }', "no parameter 'wte.weight'"),
    ("tie to another shape", DENSE, '{ op = "linear", out = 4, weight = "conv.weight" }', "cannot tie"),
    ("tie by a number", DENSE, '{ op = "linear", out = 4, weight = 3 }', "'weight'"),
    ("tie an attribute that is none", DENSE, '{ op = "linear", out = 4, wieght = "conv.weight" }', "'weight'"),
    ("probability above one", '"flatten"', '{ op = "dropout", p = 1.5 }, "flatten"', "0 ... 1"),
    ("probability is infinite", '"flatten"', '{ op = "dropout", p = inf }, "flatten"', "number"),
    ("probability is a word", '"flatten"', '{ op = "dropout", p = "high" }, "flatten"', "'high'"),
    ("flag is a number", '"relu"]', '{ op = "relu", inplace = 1 }]', "true or false"),
    ("flag is a word", '"relu"]', '{ op = "relu", inplace = "yes" }]', "true or false"),
    ("outputs is a number", "[model]", "[model]\noutputs = 3", "outputs"),
    ("output does not exist", "[model]", '[model]\noutputs = ["logits"]', "'logits'"),
    ("name is a number", "[params]", "name = 3\n[params]", "'name'"),
    ("about is a number", "[params]", "about = 3\n[params]", "'about'"),
    ("deeply nested TOML", "batch = 2", "batch = " + "[" * 20_000 + "]" * 20_000, "TOML"),
    ("deeply nested tables", "batch = 2", "batch" + ".a" * 20_000 + " = 2", "spec.toml"),
]


@pytest.mark.parametrize(("old", "new", "words"), [e[1:] for e in EDITS], ids=[e[0] for e in EDITS])
def test_a_malformed_spec_gets_one_error_that_says_where_and_what(old, new, words):
    assert old in GOOD
    with pytest.raises(SpecError) as error:
        parse_spec(GOOD.replace(old, new), "spec.toml")
    message = str(error.value)
    assert message.startswith("spec.toml")
    assert words in message
    assert len(message) < 700
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", message), "no control characters reach the terminal"


def test_the_spec_that_the_cases_start_from_is_right():
    assert len(parse_spec(GOOD, "spec.toml").ops) == 5


BOMBS = {
    "blocks that double": """
        inputs.x.shape = [1]
        model.layers = [{ block = "b0" }]
        """
    + "".join(
        f'\n[block.b{i}]\nlayers = [{{ block = "b{i + 1}", name = "l" }}, {{ block = "b{i + 1}", name = "r" }}]'
        for i in range(30)
    )
    + '\n[block.b30]\nlayers = ["relu"]',
    "repeats of repeats": """
        inputs.x.shape = [1]
        model.layers = [{ block = "a", repeat = 20000 }]
        [block.a]
        layers = [{ block = "b", repeat = 20000 }]
        [block.b]
        layers = [{ op = "relu", repeat = 20000 }]
        """,
    "empty repeats of repeats": """
        inputs.x.shape = [1]
        model.layers = [{ block = "a", repeat = 20000 }]
        [block.a]
        layers = [{ block = "b", repeat = 20000 }]
        [block.b]
        layers = [{ op = "relu", repeat = 0 }]
        """,
    "a product of layers": """
        inputs.x.shape = [1]
        model.layers = [{ op = "relu", repeat = 20001 }]
        """,
    "many deep dotted keys": "\n".join(f"k{i}" + ".a" * 39 + " = 1" for i in range(2_900)),
    "a file of two megabytes": "# " + "x" * 2**21,
}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads peak memory from /proc")
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_quickly_and_in_little_memory(name, tmp_path):
    file = tmp_path / "bomb.toml"
    file.write_text(textwrap.dedent(BOMBS[name]))
    code = (
        "import re, sys, time; from graphsim.__main__ import main; start = time.process_time()\n"
        f"sys.argv = ['graphsim', 'peak', {str(file)!r}]\n"
        "try: main()\n"
        "finally:\n"
        "    peak = re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]\n"
        "    print(time.process_time() - start, peak)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "bomb.toml" in done.stderr
    seconds, kilobytes = done.stdout.split()
    assert int(kilobytes) < 200 * 1024
    assert float(seconds) < 20, "a bomb would take hours; about one second is spent here"


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"\x00\x01\x02\xff", "not UTF-8"), (b"name = '\xe9'", "not UTF-8"), (b"\x00", "not TOML"), (b"", "[inputs]")],
    ids=["binary", "latin-1", "a null byte", "empty"],
)
def test_a_file_that_is_no_text_is_refused(content, words, tmp_path):
    file = tmp_path / "model.toml"
    file.write_bytes(content)
    with pytest.raises(SpecError, match=re.escape(words)):
        load_spec(file)


def test_a_missing_file_a_directory_and_an_unknown_name_are_told_apart(tmp_path):
    with pytest.raises(SpecError, match="no such file"):
        load_spec(tmp_path / "nothing.toml")
    with pytest.raises(SpecError, match="directory"):
        load_spec(tmp_path)
    with pytest.raises(SpecError, match="'gpt2'"):
        load_spec("gtp2")


@pytest.mark.parametrize("value", [2.5, True, "two", [2], None, 10**400, float("nan")])
def test_an_override_of_the_wrong_type_is_refused(value):
    with pytest.raises(SpecError, match="batch"):
        parse_spec(GOOD, "spec.toml", batch=value)


TEXTS = [path.read_text() for path in sorted(SPECS.glob("*.toml"))] + [GOOD]


def outcome(text: str) -> Graph | GraphSimError:
    try:
        return parse_spec(text, "spec.toml")
    except GraphSimError as error:
        return error


@given(text=st.sampled_from(TEXTS), data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_spec_with_damaged_text_is_a_graph_or_one_error(text, data):
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 40)))
    junk = data.draw(
        st.sampled_from(["", "0", "-1", "99999999", '"', "]", "}", "{", "=", "x", "true", "[[", "1e9", "\n"])
    )
    result = outcome(text[:start] + junk + text[end:])
    assert isinstance(result, Graph) or str(result).startswith("spec.toml")

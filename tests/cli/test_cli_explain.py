"""`graphsim explain`: from a file or standard input, as text or JSON; what is wrong in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from command_line import graphsim

import graphsim as gs

MESSAGE = (
    "torch.OutOfMemoryError: CUDA out "
    "of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 11.91 GiB "
    "of which 406.38 MiB is free. Including non-PyTorch memory, this process has 11.51 GiB memory in use. Of the "
    "allocated memory 11.18 GiB is allocated by PyTorch, and 219.44 MiB is reserved by PyTorch but unallocated.\n"
)


def test_from_standard_input_and_from_a_file_the_answer_is_that_of_python(tmp_path):
    (tmp_path / "error.txt").write_text(MESSAGE)
    from_file = graphsim("explain", str(tmp_path / "error.txt"))
    command = [sys.executable, "-m", "graphsim", "explain"]
    env = {**os.environ, "COLUMNS": "100"}
    from_pipe = subprocess.run(command, input=MESSAGE, capture_output=True, text=True, check=True, env=env)
    assert from_file.stdout == from_pipe.stdout
    assert from_file.stdout.split() == str(gs.explain(MESSAGE)).split(), "but for the width"
    assert "The card is full: 2.00 GiB were asked for, 406.4 MiB free, 11.18 GiB in use." in " ".join(
        from_file.stdout.split()
    )


def test_json_of_a_snapshot_and_a_source(tmp_path):
    picture = tmp_path / "step.pickle"
    assert graphsim("export", "lenet5", "--batch", "4096", "-o", str(picture)).returncode == 0
    told = json.loads(graphsim("explain", str(picture), "lenet5", "--batch", "4096", "--gpu", "t4", "--json").stdout)
    assert told["schema"] == "graphsim-explain/1"
    assert told["cause"]["kind"] == "no error"
    assert told["moment"]["allocated"] == gs.peak("lenet5", batch=4096).steady.peak_bytes
    assert told["moment"]["live"][0]["nbytes"] == gs.peak("lenet5", batch=4096).steady.largest[0].nbytes
    assert told["measures"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("nowhere.txt",), "nowhere.txt: No such file"),
        (("/dev/zero",), "is a device"),
        ((__file__,), "test_cli_explain.py: there is no CUDA out-of-memory message"),
        ((__file__, "--batch", "4"), "options of a training are for a source"),
        ((__file__, "lenet6"), "test_cli_explain.py: there is no"),
    ],
)
def test_what_is_wrong_is_one_line_with_exit_code_2(arguments, why):
    done = graphsim("explain", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert why in done.stderr
    assert done.stderr.count("\n") == 1

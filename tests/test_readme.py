"""README tells the truth: its output is what the code prints, its figures are what the code computes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from test_accuracy import ACCURACY

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
CONSOLE = re.findall(r"```console\n\$ (graphsim [^\n]*)\n(.*?)```", TEXT, re.DOTALL)


def graphsim(command: str) -> str:
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    arguments = [sys.executable, "-m", *shlex.split(command.partition("#")[0])]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert done.returncode in (0, 1), done.stderr  # 1: the answer is no
    return re.sub(r"planned in [\d.]+ s", "planned in 0.02 s", done.stdout)


@pytest.mark.parametrize(("command", "output"), CONSOLE, ids=[command for command, _ in CONSOLE])
def test_the_output_shown_is_the_output_printed(command, output):
    assert graphsim(command) == re.sub(r"planned in [\d.]+ s", "planned in 0.02 s", output)


def test_there_is_a_real_output_to_show():
    assert CONSOLE


def test_the_accuracy_table_holds_todays_predictions():
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in TEXT.splitlines() if "foreach=" in line]
    predicted = [
        [
            ACCURACY.SPECS[case.model],
            f"{case.batch}x{case.sequence}" if case.sequence else str(case.batch),
            case.optimizer,
            f"{measured['peak_steady']:,}",
            f"{ACCURACY.predict(case)['peak_steady']:,}",
            f"{ACCURACY.predict(case)['peak_steady'] - measured['peak_steady']:+,}",
        ]
        for case, measured in ACCURACY.reference()
    ]
    assert [row for row in rows if len(row) == 6] == predicted


@pytest.mark.exhaustive
def test_every_command_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blocks.csv").write_text("id,lower,upper,size\na,0,2,4\nb,1,3,4\n")
    (tmp_path / "error.txt").write_text(
        "CUDA out of memory. Tried to allocate 9.00 GiB (GPU 0; 8.00 GiB total capacity)"
    )
    block = re.search(r"## What you can ask\n\n```bash\n(.*?)```", TEXT, re.DOTALL)
    commands = [line for line in block[1].splitlines() if line.startswith("graphsim") and "my_model" not in line]
    assert len(commands) >= 4
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", *shlex.split(command, comments=True)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (command, done.stderr)
    assert (tmp_path / "step.pickle").exists()


def test_the_python_example_runs():
    example, plug_in = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    compile(plug_in, "README.md", "exec")  # executed, it would change PyTorch's settings for other tests
    exec(compile(example, "README.md", "exec"), {})


def test_the_two_commands_need_only_python_and_pip():
    for mark in ("main command", "test command"):
        (command,) = re.findall(rf"<!-- {mark} -->\n```bash\n(.*)\n```", TEXT)
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install")

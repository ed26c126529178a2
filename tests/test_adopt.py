"""What others take into their repositories: the action that comments on pull requests, and the pre-commit hook."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from shown import ROOT

yaml = pytest.importorskip("yaml")

ACTION = ROOT / ".github" / "actions" / "graphsim-diff"
BAD = '[params]\nbatch = 2\n[inputs]\nx = { shape = ["batch", 4] }\n[model]\nlayers = ["no_such_op"]\n'


def _program(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def shell(tmp_path):
    """Bash with `graphsim`, with a `gh` that writes down how it was called, and what a runner has."""
    _program(tmp_path / "bin" / "graphsim", f'#!/bin/sh\nexec "{sys.executable}" -m graphsim "$@"\n')
    _program(
        tmp_path / "bin" / "gh",
        '#!/bin/sh\necho "$*" >>"$RUNNER_TEMP/gh"\ncase "$*" in *--jq*) cat "$RUNNER_TEMP/earlier";; esac\n',
    )
    (tmp_path / "earlier").touch()
    environment = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RUNNER_TEMP": str(tmp_path),
        "GITHUB_OUTPUT": str(tmp_path / "output"),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
        "GITHUB_REPOSITORY": "owner/repository",
        "NUMBER": "7",
    }

    def run(*command: str, **more: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", *command], env=environment | more, cwd=tmp_path, capture_output=True, text=True, check=False
        )

    return run


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ("--b batch=2", 1, "it grew"),
        ("--b batch=2 --tolerance 500%", 0, "within what is allowed"),
        ("--no-such", 2, "could not"),
    ],
)
def test_the_action_leaves_the_answer_and_its_code(shell, tmp_path, options, code, says):
    done = shell(str(ACTION / "ask.sh"), A="lenet5", B="lenet5", OPTIONS=f"--batch 1 {options}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "output").read_text() == f"code={code}\n"
    summary = (tmp_path / "summary.md").read_text()
    assert says in summary.splitlines()[1]
    assert ("peak" in summary) == (code < 2)


def test_the_comment_of_an_earlier_push_is_replaced(shell, tmp_path):
    (tmp_path / "comment.md").write_text("<!-- graphsim diff: lenet5 -->\nhello\n")
    assert shell(str(ACTION / "comment.sh")).returncode == 0
    (tmp_path / "earlier").write_text("123\n")
    assert shell(str(ACTION / "comment.sh")).returncode == 0
    asked, made, again, replaced = (tmp_path / "gh").read_text().splitlines()
    assert asked == again
    assert made.startswith("api --method POST repos/owner/repository/issues/7/comments ")
    assert replaced.startswith("api --method PATCH repos/owner/repository/issues/comments/123 ")


def test_the_action_names_its_scripts_and_its_inputs():
    action = yaml.safe_load((ACTION / "action.yml").read_text())
    text = (ACTION / "action.yml").read_text()
    assert all(step["shell"] == "bash" for step in action["runs"]["steps"])
    assert {path.name for path in ACTION.glob("*.sh")} == {"ask.sh", "comment.sh"}
    assert all(f"inputs.{name} " in text for name in action["inputs"])
    assert all(f"$GITHUB_ACTION_PATH/{path.name}" in text for path in ACTION.glob("*.sh"))


def test_the_hook_names_the_spec_that_is_wrong(shell, tmp_path):
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    (tmp_path / "bad.toml").write_text(BAD)
    good = str(ROOT / "specs" / "lenet5.toml")
    assert shell("-c", f'{hook["entry"]} "{good}" "{good}"').returncode == 0
    done = shell("-c", f'{hook["entry"]} bad.toml "{good}"')
    assert done.returncode == 2
    assert "bad.toml" in done.stderr
    assert "no_such_op" in done.stderr

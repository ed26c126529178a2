"""What README and the pages of docs/ show: their blocks of code, run as a reader would, in one folder a page.

    python tests/shown.py docs/tutorial.md      writes today's outputs into the page

- A block with a title, ```` ```python title="model.py" ````, is a file of that name.
- `console` blocks hold commands after `$ ` and what they print; `bash` blocks hold commands alone, one a line.
- The other `python` blocks of a page are one program, which runs last.
- A block right after a comment is not run: `<!-- not run: it needs a GPU -->`.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = sorted(page for page in (ROOT / "docs").rglob("*.md"))

_BLOCK = re.compile(
    r"(?P<comment><!--[^>]*-->\n)?"
    r"(?P<fence>^```)(?P<kind>\w+)(?: title=\"(?P<title>[^\"]+)\")?[^\n]*\n(?P<body>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
_COMMAND = re.compile(r"^\$ ", re.MULTILINE)
_SHELL = 'graphsim() { "$PYTHON" -m graphsim "$@"; }; python() { "$PYTHON" "$@"; }\n'


@dataclass(frozen=True)
class Block:
    """A fenced block of code, and where its body stands in the page."""

    kind: str
    title: str
    body: str
    begin: int
    comment: str


def blocks(text: str) -> Iterator[Block]:
    """Yield the blocks of a page in order."""
    for found in _BLOCK.finditer(text):
        comment = (found["comment"] or "").strip()
        yield Block(found["kind"], found["title"] or "", found["body"], found.start("body"), comment)


def said(body: str) -> Iterator[tuple[str, str]]:
    """Yield the commands of a console block, each with what the page says that it prints."""
    for part in _COMMAND.split(body)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def commands(body: str) -> list[str]:
    """Return the commands of a bash block."""
    lines = body.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def printed(command: str, folder: Path) -> str:
    """Return what *command* prints in *folder*; its answer may be no, but it must be one."""
    environment = {
        **os.environ,
        "COLUMNS": "100",
        "NO_COLOR": "1",
        "PYTHON": sys.executable,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]),
        "PYTHONHASHSEED": "0",
    }
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", _SHELL + command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=environment,
        cwd=folder,
    )
    assert done.returncode in (0, 1), (command, done.returncode, done.stdout)
    assert "Traceback" not in done.stdout, (command, done.stdout)
    return done.stdout


def steady(output: str) -> str:
    """Return *output* without what is another each time: how long a plan took."""
    return re.sub(r"(planned|events) in [\d.]+ s", r"\1 in 0.02 s", output)


def run(text: str, folder: Path, check: Callable[[str, str, str], None]) -> str:
    """Run the blocks of a page in *folder*; return the page with today's outputs.

    Args:
        check: called with each command of a console block, what the page says that it prints, and what it prints.
    """
    program, pieces, end = [], [], 0
    for block in blocks(text):
        body = block.body
        if block.title:
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(body)
        elif block.comment:
            continue
        elif block.kind == "console":
            body = ""
            for command, output in said(block.body):
                today = printed(command, folder)
                check(command, output, today)
                body += f"$ {command}\n{output if steady(output) == steady(today) else today}"
        elif block.kind == "bash":
            for command in commands(block.body):
                printed(command, folder)
        elif block.kind == "python":
            program.append(body)
        pieces += [text[end : block.begin], body]
        end = block.begin + len(block.body)
    if program:
        (folder / "page.py").write_text("\n".join(program))
        assert printed(f"python {shlex.quote(str(folder / 'page.py'))} && echo done", folder).endswith("done\n")
    return "".join([*pieces, text[end:]])


def _rewrite(page: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        page.write_text(run(page.read_text(), Path(folder), lambda *_: None))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        _rewrite(Path(name))

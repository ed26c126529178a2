"""The command as a user has it, run in this process: a new one would import PyTorch for every test."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

from graphsim.__main__ import main


def graphsim(*arguments: str, cwd: str | Path = ".") -> subprocess.CompletedProcess[str]:
    """Run a command line in the folder *cwd*, into pipes, as a process that ends."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    imported, code = set(sys.modules), 0
    with (
        contextlib.chdir(cwd),
        mock.patch.object(sys, "argv", ["graphsim", *arguments]),
        mock.patch.object(sys, "path", [str(Path(cwd).resolve()), *sys.path]),
        mock.patch.dict(os.environ, {"COLUMNS": "100", "LINES": "24"}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as left:
            code = left.code or 0
        finally:
            if cwd != ".":  # what the user's folder holds is imported anew each time
                _forget(set(sys.modules) - imported, f"{Path.cwd()}/")
    texts = (stream.buffer.getvalue().decode() for stream in (out, err))
    return subprocess.CompletedProcess(["graphsim", *arguments], int(code), *texts)


def _forget(modules: set[str], folder: str) -> None:
    for name in modules:
        if str(getattr(sys.modules[name], "__file__", "") or "").startswith(folder):
            del sys.modules[name]

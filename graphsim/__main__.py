"""``python -m graphsim`` and the ``graphsim`` command: the one place that catches errors.

Exit codes: 0; 1, the answer is no; 2, a wrong input; 70, a fault of graphsim's own; 130, interrupted.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from graphsim.errors import DISTRIBUTION, GraphSimError, InfeasibleError, printable

NO, WRONG_INPUT, FAULT, INTERRUPTED = 1, 2, 70, 130


def main() -> None:
    """Run the command line; every error is one line on standard error."""
    try:
        from graphsim.cli.app import app

        app()
    except GraphSimError as error:
        _leave(NO if isinstance(error, InfeasibleError) else WRONG_INPUT, str(error))
    except BrokenPipeError:  # the reader of a pipe has left: nothing to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(NO)
    except KeyboardInterrupt:
        _leave(INTERRUPTED, "interrupted")
    except MemoryError:
        _leave(FAULT, "this machine has too little memory for it")
    except Exception as error:
        _leave(FAULT, _fault(error))


def _leave(code: int, message: str) -> NoReturn:
    text = f"graphsim: {printable(' '.join(message.split()))}\n"
    encoding = sys.stderr.encoding or "utf-8"
    sys.stderr.write(text.encode(encoding, "replace").decode(encoding))
    sys.exit(code)


def _fault(error: Exception) -> str:
    """Return what to say of a fault of ours, whose details are written to a file that can be sent."""
    import tempfile
    import traceback

    from graphsim.version import __version__

    where = traceback.extract_tb(error.__traceback__)[-1]
    what = f"{type(error).__name__} in {os.path.basename(where.filename)}:{where.lineno}"  # noqa: PTH119 - a text
    report = f"{DISTRIBUTION} {__version__}, Python {sys.version}\n{' '.join(sys.argv)}\n\n{traceback.format_exc()}"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="graphsim-fault-", suffix=".txt", delete=False, encoding="utf-8", errors="replace"
        ) as file:
            file.write(report)
        details = f"; the details to report are in {file.name}"
    except OSError:
        details = ""
    return f"a fault of graphsim's own, no answer: {what}: {str(error)[:200]}{details}"


if __name__ == "__main__":
    main()

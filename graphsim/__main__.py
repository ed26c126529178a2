"""``python -m graphsim`` and the ``graphsim`` command: the one place that catches errors."""

from __future__ import annotations

import os
import sys

from graphsim.errors import GraphSimError, InfeasibleError


def main() -> None:
    """Run the command line; one message on stderr, and exit code 2 for a wrong input, 1 where nothing fits."""
    from graphsim.cli.app import app

    try:
        app()
    except GraphSimError as error:
        message = " ".join(str(error).split())
        sys.stderr.write(f"graphsim: {message}\n")
        sys.exit(1 if isinstance(error, InfeasibleError) else 2)
    except BrokenPipeError:  # the reader of a pipe has left: nothing to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()

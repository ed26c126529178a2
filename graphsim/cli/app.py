"""The commands. Errors are caught in `graphsim.__main__`, once."""

from __future__ import annotations

from typing import Annotated

import typer

from graphsim.cli import catalogue, compare, diff, explain, export, fit, pack, peak, plan, replay, report, sweep
from graphsim.cli.screen import say

app = typer.Typer(
    name="graphsim",
    help="How much memory does training this model take, and what is alive at the peak? Exact, before anything is run.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        from graphsim.version import __version__

        say(f"{__version__}\n")
        raise typer.Exit


app.command(epilog=peak.EXAMPLES)(peak.peak)
app.command(epilog=fit.EXAMPLES)(fit.fit)
app.command(epilog=explain.EXAMPLES)(explain.explain)
app.command(epilog=plan.EXAMPLES)(plan.plan)
app.command(epilog=compare.EXAMPLES)(compare.compare)
app.command(epilog=diff.EXAMPLES)(diff.diff)
app.command(epilog=sweep.EXAMPLES)(sweep.sweep)
app.command(epilog=report.EXAMPLES)(report.report)
app.command(epilog=replay.EXAMPLES)(replay.replay)
app.command(epilog=export.EXAMPLES)(export.export)
app.command(epilog=pack.EXAMPLES)(pack.pack)
app.command()(catalogue.specs)
app.command()(catalogue.ops)
app.command()(catalogue.gpus)

"""The commands that list what there is: specs, ops, GPUs."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from graphsim.cli.options import AsJson
from graphsim.cli.screen import print_table, say


def specs(
    name: Annotated[str | None, typer.Argument(help="A shipped spec, to print its file.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of spec files.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the model specs that come with graphsim and their params, or print one."""
    from graphsim.sources.spec import describe_shipped, read_spec
    from graphsim.sources.spec.schema import spec_schema

    entries = describe_shipped()
    if schema:
        say(json.dumps(spec_schema(), indent=2) + "\n")
    elif name:
        say(read_spec(name))
    elif as_json:
        say(json.dumps(entries, indent=2) + "\n")
    else:
        rows = [
            (entry["name"], entry["about"], " ".join(f"{param}={value}" for param, value in entry["params"].items()))
            for entry in entries
        ]
        print_table(("spec", "model", "params (--set)"), rows)


def ops(
    name: Annotated[str | None, typer.Argument(help="An op kind, for its attributes and source.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the op kinds that specs can use, or describe one."""
    from graphsim.step.ops import kind_of, kinds
    from graphsim.step.ops.kind import describe

    entries = [describe(kind_of(name))] if name else [describe(kind) for kind in kinds().values()]
    if as_json:
        say(json.dumps(entries[0] if name else entries, indent=2) + "\n")
        return
    if not name:
        rows = [(e["name"], e["about"], ", ".join(a["name"] for a in e["attributes"])) for e in entries]
        print_table(("op", "what it does", "attributes"), rows)
        return
    (entry,) = entries
    say(f"{entry['name']}: {entry['about']}\n  operands: {entry['operands']}\n")
    if entry["source"]:
        say(f"  source: {entry['source']}\n")
    if entry["attributes"]:
        attributes = [(a["name"], a["type"], a["default"], a["about"]) for a in entry["attributes"]]
        print_table(("attribute", "type", "default", ""), attributes)


def gpus(as_json: AsJson = False) -> None:
    """List the cards that --gpu takes: their memory as drivers report it, and what prices the ops."""
    from graphsim.core.devices import DEVICES
    from graphsim.units import format_bytes

    if as_json:
        from dataclasses import asdict

        say(json.dumps([asdict(device) for device in DEVICES.values()], indent=2) + "\n")
        return
    rows = [
        (device.name, format_bytes(device.memory), f"{device.bandwidth / 1e9:,.0f} GB/s") for device in DEVICES.values()
    ]
    print_table(("gpu", "memory", "bandwidth"), rows)

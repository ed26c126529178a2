"""Spec files: a model in a page of TOML, read strictly. specs/README.md is the reference."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from graphsim.core.files import read_text
from graphsim.core.graph import Graph
from graphsim.errors import SpecError, suggest
from graphsim.sources.spec.builder import Builder
from graphsim.sources.spec.expression import Value

MAX_FILE = 2**18
MAX_DOTS = 40


class SpecText(NamedTuple):
    """A spec that has been read: its name, and its text."""

    name: str
    text: str

    @property
    def frontend(self) -> str:
        """What reads it."""
        return "spec"


def load_spec(source: str | Path | SpecText, **overrides: Value) -> Graph:
    """Return the forward graph of the spec file *source*.

    Args:
        source: path of a TOML file, or the name of a shipped spec.
        overrides: values for the spec's ``[params]``.

    Raises:
        SpecError: names the file, the layer and what would be right.
    """
    name, text = spec_text(source)
    return parse_spec(text, name, **overrides)


def spec_text(source: str | Path | SpecText) -> SpecText:
    """Return the spec *source*, read; see `read_spec`."""
    return source if isinstance(source, SpecText) else SpecText(str(source), read_spec(source))


def stamp(source: str | Path | SpecText) -> bytes:
    """Return the text of the spec."""
    return spec_text(source).text.encode("utf-8", "surrogateescape")


def takes(source: str | Path | SpecText, name: str) -> bool:
    """Whether the spec *source* has a param *name*."""
    spec = spec_text(source)
    return name in parse_toml(spec.text, spec.name).get("params", {})


def read_spec(source: str | Path) -> str:
    """Return the text of a spec file, or of the shipped spec of that name.

    Raises:
        SpecError: there is neither, or it cannot be read.
    """
    return read_text(find_spec(source), MAX_FILE)


def shipped_specs() -> dict[str, Path]:
    """Return the specs that come with graphsim, by name."""
    package = Path(__file__).resolve().parents[2]
    for folder in (package / "specs", package.parent / "specs"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.toml"))}
    return {}


def find_spec(source: str | Path) -> Path:
    """Return the path of a spec file, or of the shipped spec of that name.

    Raises:
        SpecError: there is neither.
    """
    path = Path(source)
    name = str(source)
    if len(name) > 4096 or "\0" in name:
        raise SpecError("not a file name", name[:60])
    try:
        if name and path.is_dir():
            raise SpecError("is a directory, not a spec file", name)
        if path.exists():
            return path
    except OSError as error:  # a name that no file can have
        raise SpecError(error.strerror or str(error), name[:60]) from None
    shipped = shipped_specs()
    stem = path.stem if path.suffix == ".toml" else name
    if stem in shipped:
        return shipped[stem]
    raise SpecError(f"no such file or shipped spec; {suggest(stem, shipped)}", name)


def parse_spec(text: str, where: str = "spec", **overrides: Value) -> Graph:
    """Return the forward graph of the spec *text*; *where* names it in errors."""
    return Builder(parse_toml(text, where), where, overrides).build()


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """Return the tables of a stranger's TOML; *where* names it in errors.

    Raises:
        SpecError: it is not TOML, or would take too long to read.
    """
    for number, line in enumerate(text.splitlines(), start=1):
        if line.count(".") > MAX_DOTS:  # the parser takes time in the square of a dotted key's depth
            raise SpecError(f"not TOML we read: line {number} has more than {MAX_DOTS} dots", where)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"not TOML: {error}", where) from None
    except RecursionError:
        raise SpecError("not TOML: nested too deeply", where) from None


def describe_shipped() -> list[dict[str, Any]]:
    """Return name, title and default params of each shipped spec, as plain data."""
    entries = []
    for name, path in shipped_specs().items():
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        entries.append({"name": name, "about": data.get("about", ""), "params": data.get("params", {})})
    return entries

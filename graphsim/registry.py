"""Plug-ins by name: a literal table, imported only when asked for, plus entry points."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any, Generic, TypeVar, cast

from graphsim.errors import UnknownNameError

P = TypeVar("P")


class Registry(Generic[P]):
    """Names of one kind of plug-in and where each is defined (``module:attribute``): what makes a P.

    Other packages add theirs through the entry-point group ``graphsim.<group>``; a name in the
    literal table wins. A plug-in object is accepted wherever its name is.
    """

    def __init__(self, group: str, what: str, table: Mapping[str, str]) -> None:
        self.group = group
        self.what = what
        self._table = dict(table)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def names(self) -> list[str]:
        """Return all names, ours first."""
        from importlib.metadata import entry_points  # slow to import, seldom needed

        others = [e.name for e in entry_points(group=f"graphsim.{self.group}")]
        return list(dict.fromkeys([*self._table, *others]))

    def __getitem__(self, name: str) -> Callable[..., P]:
        if name in self._table:
            module, _, attribute = self._table[name].partition(":")
            return cast(Callable[..., P], getattr(import_module(module), attribute))
        from importlib.metadata import entry_points

        for entry in entry_points(group=f"graphsim.{self.group}", name=name):
            return cast(Callable[..., P], entry.load())
        raise UnknownNameError(self.what, name, self.names())

    def resolve(self, plugin: P | str, **options: Any) -> P:
        """Return *plugin* itself if it is an object, or the plug-in of that name with *options*."""
        return self[plugin](**options) if isinstance(plugin, str) else plugin

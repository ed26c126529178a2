"""Plug-ins by name: a literal table, imported only when asked for, plus entry points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from graphsim.errors import UnknownNameError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

P = TypeVar("P")


def imported(home: Any) -> Any:
    """Return what ``module:attribute`` names, imported now; anything but text stands for itself."""
    if not isinstance(home, str):
        return home
    module, _, attribute = home.partition(":")
    return getattr(import_module(module), attribute)


class Registry(Generic[P]):
    """Names of one kind of plug-in and where each is defined (``module:attribute``), or what each is.

    Other packages add theirs through the entry-point group ``graphsim.<group>``; a name in the
    literal table wins. A plug-in object is accepted wherever its name is.
    """

    def __init__(self, group: str, what: str, table: Mapping[str, str | P]) -> None:
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
        return list(dict.fromkeys([*self._table, *self.others()]))

    def ours(self) -> list[str]:
        """Return the names of the literal table."""
        return list(self._table)

    def others(self) -> list[str]:
        """Return the names that other packages add."""
        return [e.name for e in self._entries()]

    def __getitem__(self, name: str) -> P:
        if name in self._table:
            found: P = imported(self._table[name])
            return found
        for entry in self._entries():
            if entry.name == name:
                loaded: P = entry.load()
                return loaded
        raise UnknownNameError(self.what, name, self.names())

    def _entries(self) -> EntryPoints:
        from importlib.metadata import entry_points  # slow to import, and to call, seldom needed

        return entry_points(group=f"graphsim.{self.group}")

    def resolve(self, plugin: Any, **options: Any) -> Any:
        """Return *plugin* itself if it is an object, or the plug-in of that name with *options*."""
        made: Any = self[plugin] if isinstance(plugin, str) else plugin
        return made(**options) if isinstance(plugin, str) else made

    def name_of(self, plugin: Any) -> str:
        """Return the name under which the function, or the class of the object, *plugin* is known, else its own."""
        kind = plugin if hasattr(plugin, "__qualname__") else type(plugin)
        place = f"{kind.__module__}:{kind.__qualname__}"
        ours = next((name for name, home in self._table.items() if home == place), "")
        return ours or next((e.name for e in self._entries() if e.value == place), str(kind.__name__))

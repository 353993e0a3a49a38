"""What a task has loaded: the local paths, the references, and the keys for the lineage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from metaflow_artifacts._mf.temporary import TemporaryDirectories

__all__ = ["Loaded", "loaded_keys", "note_loaded"]

_keys: dict[str, None] = {}


def note_loaded(key: str) -> None:
    """Note that the task in this process has loaded the artifact at `key`. Any thread may call this."""
    # No lock: a child of fork could inherit it held. Both operations on the dict are atomic.
    _keys.setdefault(key)


def loaded_keys() -> list[str]:
    """The keys of all artifacts that the task in this process has loaded, with any decorator, in order."""
    return list(_keys)


class Loaded(Mapping[str, str]):
    """A mapping of names to the local paths of what was loaded; `info` has the reference of each name.

    A copy, or what comes out of a pickle, has the same names, paths and references, and owns none of the directories.
    """

    # Artifacts live longer than the arrangement of modules: pickles have the name in the seam.
    __module__ = "metaflow_artifacts.plugin"

    def __init__(self, temporary: TemporaryDirectories | None = None) -> None:
        """`temporary` has made the directories that `cleanup` may remove."""
        # No lock: a child of fork could inherit it held. Single operations on these dicts are atomic.
        self._paths: dict[str, str] = {}
        self._info: dict[str, dict[str, Any]] = {}
        self._temporary = temporary

    @property
    def info(self) -> dict[str, dict[str, Any]]:
        """A dict of the same names to the references (`ModelArtifact` dicts). Each call makes a new one."""
        return {name: dict(reference) for name, reference in self._info.copy().items()}

    def add(self, name: str, path: str, info: Mapping[str, Any]) -> None:
        """Add an entry, or replace the one of this name, and note its key for the lineage."""
        self._info[name] = dict(info)
        self._paths[name] = path
        note_loaded(str(info["key"]))

    def cleanup(self, artifact_name: str | None = None) -> None:
        """Remove the temporary directory of one name, or those of all names, before the task ends.

        The name is removed from the mapping. A directory that the user has chosen stays: it may hold other files.

        Parameters
        ----------
        artifact_name : str, default None
            The name; by default all.

        Raises
        ------
        KeyError
            If nothing of this name was loaded.
        """
        for name in [*self] if artifact_name is None else [artifact_name]:
            path = self[name]
            if self._temporary is not None:
                self._temporary.remove(path)
            self._paths.pop(name, None)
            self._info.pop(name, None)

    def __getitem__(self, name: str) -> str:
        try:
            return self._paths[name]
        except KeyError:
            known = ", ".join(self) or "nothing"
            raise KeyError(f"{name!r} was not loaded here; loaded: {known}") from None

    def __iter__(self) -> Iterator[str]:
        # Another thread may add an entry meanwhile.
        return iter(list(self._paths))

    def __len__(self) -> int:
        return len(self._paths)

    def __repr__(self) -> str:
        return f"Loaded({self._paths!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"_paths": self._paths.copy(), "_info": self._info.copy(), "_temporary": None}

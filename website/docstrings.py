"""Takes out of docstrings what only Metaflow reads."""

from __future__ import annotations

from typing import Any

from griffe import Class, Extension

FOR_METAFLOW = "\nMF Add To Current\n"


class WithoutMetaflowSections(Extension):  # type: ignore[misc, unused-ignore]
    """Decorators' docstrings end with a section from which Metaflow makes type stubs."""

    def on_class(self, *, cls: Class, **kwargs: Any) -> None:
        if cls.docstring is not None:
            cls.docstring.value = cls.docstring.value.partition(FOR_METAFLOW)[0]

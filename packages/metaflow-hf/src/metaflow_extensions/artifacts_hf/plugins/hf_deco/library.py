"""huggingface_hub, in whichever version is installed: imported when it is first needed, and what it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from metaflow_artifacts.plugin import UsageError

from .errors import CannotStream
from .text import one_line

__all__ = ["Library", "import_library"]

_NEEDED = {
    "huggingface_hub": ("get_token",),
    "huggingface_hub.constants": (
        "HF_HUB_DISABLE_IMPLICIT_TOKEN",
        "HF_HUB_DOWNLOAD_TIMEOUT",
        "HF_HUB_ETAG_TIMEOUT",
    ),
    "huggingface_hub.utils": ("filter_repo_objects", "get_session"),
}
"""What streaming needs, besides what every version since 0.16 has."""


@dataclass(frozen=True)
class Library:
    """The modules of huggingface_hub that are used here."""

    package: Any
    constants: Any
    utils: Any

    @property
    def name(self) -> str:
        """Name and version, for messages."""
        return f"huggingface_hub {getattr(self.package, '__version__', '')}".rstrip()

    def require_streams(self) -> None:
        """Raise CannotStream unless this version has all that streaming needs."""
        modules = dict(zip(_NEEDED, (self.package, self.constants, self.utils), strict=True))
        missing = [name for module, names in _NEEDED.items() for name in names if not hasattr(modules[module], name)]
        if missing:
            raise CannotStream(f"{self.name} has no {', '.join(missing)}")


def import_library() -> Library:
    """Import huggingface_hub. Raises UsageError if it is not installed, or its import fails."""
    try:
        import huggingface_hub
        from huggingface_hub import constants, utils
    except ModuleNotFoundError as error:
        if error.name != "huggingface_hub":
            raise _broken(error) from error
        raise UsageError(
            "@huggingface_hub needs the Python package huggingface_hub, which is not installed here; install it, "
            'for a remote step for example with @pypi(packages={"huggingface_hub": "..."})'
        ) from error
    except Exception as error:
        # A package that does not fit its dependencies, or this machine, fails with any error.
        raise _broken(error) from error
    return Library(huggingface_hub, constants, utils)


def _broken(error: Exception) -> UsageError:
    return UsageError(
        f"@huggingface_hub: the Python package huggingface_hub is installed here, but importing it fails "
        f"({type(error).__name__}: {one_line(error)}); install it again, or another version of it or of what it needs"
    )

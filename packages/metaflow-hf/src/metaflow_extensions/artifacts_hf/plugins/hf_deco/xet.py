"""Files from the Hub's Xet storage, through the library hf_xet, which opens several connections for each file.

It is used if hf_xet is installed and HF_HUB_DISABLE_XET is not set. All other files are downloaded over plain HTTP, and
so is the rest of a file if Xet fails in the middle, and every file if hf_xet is one that cannot be used.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .errors import HubError, one_line
from .hub import Hub

__all__ = ["XetStorage", "XetUnusable"]

_BLOCK_SIZE = 1 << 20
_FIRST_WITH_STREAMS = "1.5"


class XetUnusable(Exception):
    """The installed hf_xet cannot be used, for any file. It says why."""


@functools.lru_cache(maxsize=1)
def _is_installed() -> bool:
    """Whether there is a hf_xet. It need not be one that can be used."""
    try:
        return importlib.util.find_spec("hf_xet") is not None
    except (ImportError, ValueError):
        return False


@functools.lru_cache(maxsize=1)
def _library() -> Any:
    """The module hf_xet. Raises XetUnusable if it cannot be imported, or is too old."""
    try:
        hf_xet = importlib.import_module("hf_xet")
    except Exception as error:
        # A binary that does not fit this machine fails with any error.
        raise XetUnusable(f"importing hf_xet fails ({type(error).__name__}: {one_line(error)})") from error
    if not hasattr(getattr(hf_xet, "XetSession", None), "new_download_stream_group"):
        # Up to 1.4 it can only write files to disk.
        raise XetUnusable(f"{_name()} has no streams, hf_xet {_FIRST_WITH_STREAMS} and later have")
    return hf_xet


def _name() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"hf_xet {version('hf_xet')}"
    except PackageNotFoundError:
        return "this hf_xet"


@functools.lru_cache(maxsize=1)
def _session(process: int) -> Any:
    # One session for each process: its threads do not survive a fork.
    return _library().XetSession()


@contextmanager
def _calling() -> Iterator[None]:
    """Turn what hf_xet raises into ConnectionError, or into XetUnusable where it was called in a way it does not know.

    Its errors have no class in common.
    """
    try:
        yield
    except (ConnectionError, MemoryError, XetUnusable):
        raise
    except (AttributeError, ImportError, NotImplementedError, TypeError) as error:
        raise XetUnusable(f"{_name()} works in an unknown way ({type(error).__name__}: {one_line(error)})") from error
    except Exception as error:
        raise ConnectionError(str(error)) from error


class XetStorage:
    """The Xet storage behind one commit of a repo. Several threads may use it."""

    def __init__(self, hub: Hub, token_url: str, access: Callable[[], Any]) -> None:
        """`access` returns the Hub's answer at `token_url`; hf_xet asks there again when the token expires."""
        self._hub = hub
        self._token_url = token_url
        self._access = access
        self._group: Any = None
        self._works = True
        self._lock = threading.Lock()

    def blocks(self, xet_hash: str | None, size: int, what: str) -> Iterator[bytes]:
        """The content of a file in blocks. It ends early, with a line in the log, if the storage fails."""
        disabled = getattr(self._hub.library.constants, "HF_HUB_DISABLE_XET", False)
        if xet_hash is None or not size or not self._works or disabled or not _is_installed():
            return
        try:
            with _calling():
                group = self._opened()
                if group is None:
                    return
                for block in group.download_stream(_library().XetFileInfo(xet_hash, size), start=0):
                    for begin in range(0, len(block), _BLOCK_SIZE):
                        yield block[begin : begin + _BLOCK_SIZE]
        except ConnectionError as error:
            self._hub.warn(f"{what}: its Xet storage fails ({one_line(error)}); continuing over HTTP")
        except XetUnusable as error:
            self._works = False
            self._hub.note(f"{error}; files in Xet storage come over HTTP, one connection for each file")

    def _opened(self) -> Any:
        """The group that makes the streams; None if the Hub gives no access, for which it is asked once."""
        with self._lock:
            if self._group is None and self._works:
                # Before the Hub is asked: it may be one that cannot be used.
                _library()
                try:
                    self._group = self._new_group(self._access())
                except (HubError, ConnectionError) as error:
                    self._works = False
                    self._hub.warn(
                        f"{self._hub.request}: no access to its Xet storage ({one_line(error)}); continuing over HTTP"
                    )
            return self._group

    def _new_group(self, answer: Any) -> Any:
        try:
            endpoint, token, expiry = answer["casUrl"], answer["accessToken"], answer["exp"]
        except (KeyError, TypeError) as error:
            raise ConnectionError("the Hub's answer has no access to it") from error
        with _calling():
            return _session(os.getpid()).new_download_stream_group(
                endpoint=endpoint,
                token=token,
                token_expiry_unix_secs=expiry,
                token_refresh_url=self._token_url,
                token_refresh_headers=self._hub.headers(),
            )

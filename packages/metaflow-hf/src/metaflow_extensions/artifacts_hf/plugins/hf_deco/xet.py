"""Files from the Hub's Xet storage, through the library hf_xet, which opens several connections for each file.

It is used if hf_xet is installed and HF_HUB_DISABLE_XET is not set. All other files are downloaded over plain HTTP, and
so is the rest of a file if Xet fails in the middle, and every file if hf_xet is one that cannot be used.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .text import one_line

__all__ = ["XetSource", "XetUnusable", "xet_is_wanted"]

_BLOCK_SIZE = 1 << 20
_FIRST_WITH_STREAMS = "1.5"


class XetUnusable(Exception):
    """The installed hf_xet cannot be used, for any file. It says why."""


def xet_is_wanted() -> bool:
    """Whether hf_xet is installed, and HF_HUB_DISABLE_XET is not set. It need not be one that can be used."""
    from huggingface_hub import constants

    return not getattr(constants, "HF_HUB_DISABLE_XET", False) and _is_installed()


@functools.lru_cache(maxsize=1)
def _is_installed() -> bool:
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


class XetSource:
    """The Xet storage behind one commit of a repo."""

    def __init__(self, group: Any) -> None:
        """`group` makes the streams: a download stream group of hf_xet."""
        self._group = group

    @classmethod
    def open(
        cls, access: Callable[[], Mapping[str, Any]], token_url: str, headers: Callable[[], Mapping[str, str]]
    ) -> XetSource:
        """`access` returns the Hub's answer at `token_url`; hf_xet asks there again when the token expires.

        Raises XetUnusable if hf_xet cannot be used, before the Hub is asked; ConnectionError if the answer gives no
        access, or the storage cannot be reached.
        """
        _library()
        answer = access()
        try:
            endpoint, token, expiry = answer["casUrl"], answer["accessToken"], answer["exp"]
        except (KeyError, TypeError) as error:
            raise ConnectionError("the Hub's answer has no access to it") from error
        with _calling():
            group = _session(os.getpid()).new_download_stream_group(
                endpoint=endpoint,
                token=token,
                token_expiry_unix_secs=expiry,
                token_refresh_url=token_url,
                token_refresh_headers=dict(headers()),
            )
        return cls(group)

    def blocks(self, xet_hash: str, size: int, start: int) -> Iterator[bytes]:
        """The content of a file in blocks, from byte `start`.

        Raises ConnectionError if the storage fails, XetUnusable if hf_xet cannot be used.
        """
        with _calling():
            stream = self._group.download_stream(_library().XetFileInfo(xet_hash, size), start=start)
            for block in stream:
                for begin in range(0, len(block), _BLOCK_SIZE):
                    yield block[begin : begin + _BLOCK_SIZE]

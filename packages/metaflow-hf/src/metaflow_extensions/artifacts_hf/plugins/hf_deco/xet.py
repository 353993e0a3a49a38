"""Files out of the Hub's Xet storage, through hf_xet: several connections a file, and files of any size.

Used where hf_xet is installed and HF_HUB_DISABLE_XET is not set; everything else comes over plain HTTP, and so
does the rest of a file for which Xet fails.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

__all__ = ["XetSource", "xet_is_available"]

_BLOCK = 1 << 20


def xet_is_available() -> bool:
    """Whether an hf_xet is installed that gives files as streams, and its use is not switched off."""
    from huggingface_hub import constants

    return not getattr(constants, "HF_HUB_DISABLE_XET", False) and _library() is not None


@functools.lru_cache(maxsize=1)
def _library() -> Any:
    try:
        hf_xet = importlib.import_module("hf_xet")
    except ImportError:
        return None
    return hf_xet if hasattr(getattr(hf_xet, "XetSession", None), "new_download_stream_group") else None


@functools.lru_cache(maxsize=1)
def _session(process: int) -> Any:
    # One for each process: its threads do not survive a fork.
    return _library().XetSession()


class XetSource:
    """The Xet storage behind one commit of a repo."""

    def __init__(self, token_url: str, headers: Callable[[], Mapping[str, str]], answer: Mapping[str, Any]) -> None:
        """`answer` is what the Hub says at `token_url`, where hf_xet asks again when the access runs out."""
        self._group = _session(os.getpid()).new_download_stream_group(
            endpoint=answer["casUrl"],
            token=answer["accessToken"],
            token_expiry_unix_secs=answer["exp"],
            token_refresh_url=token_url,
            token_refresh_headers=dict(headers()),
        )

    def blocks(self, xet_hash: str, size: int, start: int) -> Iterator[bytes]:
        """The content of a file from byte `start` on, in blocks; fewer bytes where the storage fails."""
        try:
            stream = self._group.download_stream(_library().XetFileInfo(xet_hash, size), start=start)
            for block in stream:
                for begin in range(0, len(block), _BLOCK):
                    yield block[begin : begin + _BLOCK]
        except (OSError, RuntimeError) as error:
            raise ConnectionError(str(error)) from error

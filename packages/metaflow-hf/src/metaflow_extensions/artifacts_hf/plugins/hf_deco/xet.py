"""Files from the Hub's Xet storage, through the library hf_xet, which opens several connections for each file.

It is used if hf_xet is installed and HF_HUB_DISABLE_XET is not set. All other files are downloaded over plain HTTP, and
so is the rest of a file if Xet fails in the middle.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

__all__ = ["XetSource", "xet_is_available"]

_BLOCK_SIZE = 1 << 20


def xet_is_available() -> bool:
    """Whether the installed hf_xet can stream files, and HF_HUB_DISABLE_XET is not set."""
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
    # One session for each process: its threads do not survive a fork.
    return _library().XetSession()


class XetSource:
    """The Xet storage behind one commit of a repo."""

    def __init__(self, token_url: str, headers: Callable[[], Mapping[str, str]], answer: Mapping[str, Any]) -> None:
        """`answer` is the Hub's answer at `token_url`; hf_xet asks there again when the token expires."""
        self._group = _session(os.getpid()).new_download_stream_group(
            endpoint=answer["casUrl"],
            token=answer["accessToken"],
            token_expiry_unix_secs=answer["exp"],
            token_refresh_url=token_url,
            token_refresh_headers=dict(headers()),
        )

    def blocks(self, xet_hash: str, size: int, start: int) -> Iterator[bytes]:
        """The content of a file in blocks, from byte `start`. Raises ConnectionError if the storage fails."""
        try:
            stream = self._group.download_stream(_library().XetFileInfo(xet_hash, size), start=start)
            for block in stream:
                for begin in range(0, len(block), _BLOCK_SIZE):
                    yield block[begin : begin + _BLOCK_SIZE]
        except (OSError, RuntimeError) as error:
            raise ConnectionError(str(error)) from error

"""Who started a run, as Metaflow's metadata says."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

__all__ = ["users_of_runs"]

_TAG = "user:"
_THREADS = 8


def users_of_runs(runs: Iterable[str]) -> dict[str, str]:
    """The users of these runs (`flow/run`); runs that Metaflow does not know, or cannot be asked about, are left out.

    One request for each run, to the metadata service that is configured.
    """
    from metaflow.client.core import Run
    from metaflow.exception import MetaflowException

    def user_of(run: str) -> str | None:
        # The run may have been deleted, or be one of another metadata service.
        with suppress(MetaflowException, OSError, ValueError):
            tags = Run(run, _namespace_check=False).system_tags
            return next((tag.removeprefix(_TAG) for tag in sorted(tags) if tag.startswith(_TAG)), None)
        return None

    known = list(dict.fromkeys(runs))
    with ThreadPoolExecutor(_THREADS) as pool:
        return {run: user for run, user in zip(known, pool.map(user_of, known), strict=True) if user is not None}

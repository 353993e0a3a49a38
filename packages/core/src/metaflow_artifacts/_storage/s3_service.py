"""What requests to S3 need to know of boto3."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metaflow_artifacts._storage import s3_errors
from metaflow_artifacts._storage.remote_errors import RequestContext
from metaflow_artifacts._storage.remote_requests import Service
from metaflow_artifacts._storage.s3_client import prepare
from metaflow_artifacts.errors import ArtifactError, StorageError

__all__ = ["S3Service"]


class S3Service(Service):
    """boto3's clients, made by `client`, a function of no arguments."""

    def __init__(self, client: Callable[[], Any]) -> None:
        self._new_client = client

    def make_client(self, context: RequestContext) -> Any:
        where = f"cannot {context.action} {context.url}"
        try:
            from botocore.exceptions import BotoCoreError
        except ImportError as error:
            raise StorageError(f"{where}: boto3 is not installed; pip install boto3") from error
        try:
            return prepare(self._new_client())
        except BotoCoreError as error:
            raise self.explain(error, context) from error
        except ValueError as error:
            # What botocore raises for an endpoint that is not a URL.
            raise StorageError(f"{where}: no S3 client can be made ({error}); check the endpoint") from error

    def endpoint(self, client: Any) -> str:
        url: str = client.meta.endpoint_url
        return url

    def faults(self) -> tuple[type[Exception], ...]:
        return s3_errors.faults()

    def explain(self, error: Exception, context: RequestContext) -> ArtifactError:
        return s3_errors.explain(error, context)

    def is_refusal(self, error: BaseException | None) -> bool:
        return s3_errors.code_of(error) in {"PreconditionFailed", "412"}

    def is_beyond(self, error: BaseException | None) -> bool:
        return s3_errors.code_of(error) in {"InvalidRange", "416"}

    def is_changed(self, error: BaseException | None) -> bool:
        return s3_errors.code_of(error) == "BadDigest"

    def asks_to_slow_down(self, error: BaseException | None) -> bool:
        return s3_errors.code_of(error) == "SlowDown"

    def was_retried(self, error: BaseException | None) -> bool:
        return error is not None and s3_errors.was_retried(error)

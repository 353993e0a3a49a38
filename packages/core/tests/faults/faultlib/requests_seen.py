"""What a test finds in the requests that a proxy has seen."""

from __future__ import annotations

from metaflow_artifacts.testing.faults import Request

__all__ = ["by_boto3"]


def by_boto3(request: Request) -> bool:
    """Whether boto3 made a request: its own have an id."""
    return "amz-sdk-invocation-id" in request.headers

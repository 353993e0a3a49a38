"""What Metaflow's datastores need to talk to Azurite and fake-gcs-server, which know no accounts."""

import base64
import json
import time
from typing import Any


def _encoded(part: dict[str, object]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")


class AnyToken:
    """A credential whose tokens say what Azurite looks at, and are signed by nobody. Metaflow needs it hashable."""

    def get_token(self, *scopes: str, **options: object) -> Any:
        from azure.core.credentials import AccessToken

        nobody = "00000000-0000-0000-0000-000000000000"
        now = int(time.time())
        says = {
            "aud": "https://storage.azure.com",
            "iss": f"https://sts.windows.net/{nobody}/",
            "oid": nobody,
            "tid": nobody,
            "iat": now - 60,
            "nbf": now - 60,
            "exp": now + 3600,
        }
        token = ".".join([_encoded({"alg": "RS256", "typ": "JWT"}), _encoded(says), "unsigned"])
        return AccessToken(token, now + 3600)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AnyToken)

    def __hash__(self) -> int:
        return hash(AnyToken)


class Azurite:
    """The client provider `azurite`."""

    name = "azurite"

    @staticmethod
    def create_cacheable_azure_credential(*args: object, **options: object) -> AnyToken:
        return AnyToken()


class FakeGcs:
    """The client provider `fake-gcs`."""

    name = "fake-gcs"

    @staticmethod
    def get_gs_storage_client(*args: object, **options: object) -> Any:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage

        return storage.Client(credentials=AnonymousCredentials(), project="test")

    @staticmethod
    def get_credentials(scopes: list[str], *args: object, **options: object) -> tuple[Any, str]:
        from google.auth.credentials import AnonymousCredentials

        return AnonymousCredentials(), "test"

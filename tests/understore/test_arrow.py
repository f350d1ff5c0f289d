"""What pyarrow is told of Google's and Azure's stores; the contract asks their emulators."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.errors import NotFound, Refused, UnderStoreUnavailable
from mesh.metrics import Metrics
from mesh.understore.arrow import ArrowStore, AzureStore, GcsStore
from mesh.understore.open import open_under_store
from mesh.understore.pool import SlowDown
from mesh.understore.understore import AzureSettings, GcsSettings, UnderStoreSettings

KEY = "c2VjcmV0"
ABFSS = "abfss://container@named.dfs.core.windows.net/some/prefix"


def opened(url: str, **settings: Any) -> Any:
    return open_under_store(UnderStoreSettings(url=url, **settings), Metrics())


@pytest.mark.parametrize(
    ("url", "azure", "account"),
    [
        ("abfs://container/a", AzureSettings(account="ours", account_key=KEY), "ours"),
        (ABFSS, AzureSettings(account_key=KEY), "named"),
        (ABFSS, AzureSettings(sas_token="sig=x"), "named"),
        (ABFSS, AzureSettings(tenant_id="t", client_id="c", client_secret="s"), "named"),
        (ABFSS, AzureSettings(), "named"),
    ],
)
async def test_azure_is_made_of_its_settings(url: str, azure: AzureSettings, account: str) -> None:
    from pyarrow.fs import AzureFileSystem

    store = opened(url, azure=azure)
    assert isinstance(store, AzureStore)
    await store.prepare()
    expected = AzureFileSystem(
        account,
        account_key=azure.account_key or None,
        sas_token=azure.sas_token or None,
        tenant_id=azure.tenant_id or None,
        client_id=azure.client_id or None,
        client_secret=azure.client_secret or None,
    )
    assert store._client() == expected
    await store.aclose()


async def test_azure_elsewhere_is_another_one() -> None:
    settings = AzureSettings(account="a", account_key=KEY)
    here = opened("abfs://container", azure=settings)
    there = opened(
        "abfs://container",
        azure=AzureSettings(account="a", account_key=KEY, endpoint="http://127.0.0.1:1"),
    )
    assert here._client() != there._client()
    for store in (here, there):
        await store.aclose()


async def test_gcs_is_made_of_its_settings() -> None:
    from pyarrow.fs import GcsFileSystem

    store = opened("gs://bucket/some/prefix", gcs=GcsSettings(anonymous=True, project="ours"))
    assert isinstance(store, GcsStore)
    await store.prepare()
    made = store._client()
    assert isinstance(made, GcsFileSystem)
    assert made.project_id == "ours"
    await store.aclose()


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("gs://bucket", "bucket/f"),
        ("gs://bucket/a%20b", "bucket/a b/f"),
        ("abfs://container/a", "container/a/f"),
        (ABFSS, "container/some/prefix/f"),
    ],
)
def test_a_path_is_below_the_prefix(url: str, key: str) -> None:
    store: ArrowStore = opened(url)
    assert store._key("f") == key
    with pytest.raises(NotFound):
        store._key("../f")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("google::cloud::Status(NOT_FOUND: ... HTTP status code: 404", NotFound),
        ("google::cloud::Status(PERMISSION_DENIED: Permanent error", Refused),
        ("google::cloud::Status(UNAUTHENTICATED: Permanent error", Refused),
        ("google::cloud::Status(RESOURCE_EXHAUSTED: Retry policy exhausted", SlowDown),
        ("google::cloud::Status(UNAVAILABLE: Retry policy exhausted", UnderStoreUnavailable),
        ("Azure Error: [AuthorizationFailure] 403 Server failed to authenticate", Refused),
        ("Azure Error: [BlobNotFound] 404 The specified blob does not exist.", NotFound),
        ("Azure Error: [ServerBusy] 503 The server is busy.", SlowDown),
        ("Azure Error: [] Fail to get a new connection for: http://x", UnderStoreUnavailable),
    ],
)
def test_what_pyarrow_says_by_its_meaning(text: str, kind: type[Exception]) -> None:
    assert type(opened("gs://bucket")._translated(OSError(text), "")) is kind

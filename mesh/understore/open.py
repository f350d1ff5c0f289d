"""From a URL to the under-store that it names.

file:///directory                    local
s3://bucket/prefix                   s3, by botocore
hdfs://host:port/path                hdfs, by hdfs-native      pip install 'mesh-cache[hdfs]'
gs://bucket/prefix                   arrow, by pyarrow
abfs://container/prefix, abfss://    arrow, by pyarrow
fsspec+<protocol>://...              fsspec, by that one's     pip install 'mesh-cache[fsspec]'
"""

from __future__ import annotations

from importlib import import_module

from mesh.metrics import Metrics
from mesh.understore.pool import PooledStore
from mesh.understore.understore import UnderStoreSettings

FSSPEC = "fsspec+"

_STORES = {
    "file": ("mesh.understore.local", "LocalStore"),
    "s3": ("mesh.understore.s3", "S3Store"),
    "hdfs": ("mesh.understore.hdfs", "HdfsStore"),
    "gs": ("mesh.understore.arrow", "GcsStore"),
    "abfs": ("mesh.understore.arrow", "AzureStore"),
    "abfss": ("mesh.understore.arrow", "AzureStore"),
    FSSPEC: ("mesh.understore.fsspec", "FsspecStore"),
}


def open_under_store(settings: UnderStoreSettings, metrics: Metrics) -> PooledStore:
    """Make the under-store that a URL names; nothing is asked of it yet.

    Raises `Unusable` when the library that it needs is not installed.
    """
    scheme = settings.url.partition("://")[0]
    module, name = _STORES[FSSPEC if scheme.startswith(FSSPEC) else scheme]
    store: type[PooledStore] = getattr(import_module(module), name)
    return store(settings, metrics)

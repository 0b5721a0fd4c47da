"""The filesystems of paths and URIs: local disks, S3, Google Cloud Storage, and others of pyarrow."""

import os
from datetime import timedelta
from functools import cache

import pyarrow as pa
from pyarrow import fs

from llkd.errors import StorageError

S3_ATTEMPTS = 6
"""Attempts of a request, with growing pauses: about 15 seconds if the connection is refused, 30 if the
store does not answer."""
GOOGLE = "gcs"
"""pyarrow's name of Google Cloud Storage."""
GCS_SECONDS = 60
"""Retry limit of a request to Google Cloud Storage; its own default is 15 minutes."""


def filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a path or URI, and the path within it.

    Object stores are configured by environment variables: AWS_ENDPOINT_URL, AWS_REGION and the
    credentials for `s3://`, Google's credentials for `gs://`.

    Raises:
        StorageError: pyarrow does not support the URI.
    """
    scheme, separator, path = uri.partition("://")
    if not separator:
        return fs.LocalFileSystem(), os.path.abspath(uri)
    if scheme not in ("s3", "gs"):
        return _from_uri(uri)
    # The key is taken literally: pyarrow would decode a space or a % in a URI.
    bucket, _, key = path.strip("/").partition("/")
    filesystem_, root = _bucket(f"{scheme}://{bucket}")
    return filesystem_, f"{root}/{key}".rstrip("/")


@cache
def _bucket(uri: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a bucket, cached because each has its own connections."""
    found, root = _from_uri(uri)
    make, (options,) = found.__reduce__()
    if found.type_name == "s3":
        tries = fs.AwsStandardS3RetryStrategy(max_attempts=S3_ATTEMPTS)
        # Delayed opening writes a small file in one request instead of three.
        return make({**options, "retry_strategy": tries, "allow_delayed_open": True}), root
    return make({**options, "retry_time_limit": timedelta(seconds=GCS_SECONDS)}), root


@cache
def _from_uri(uri: str) -> tuple[fs.FileSystem, str]:
    try:
        return fs.FileSystem.from_uri(uri)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StorageError(f"Cannot open {uri}: {error}") from error


def forget_filesystems() -> None:
    """Clear the cached filesystems, so that the next access reads the environment again."""
    _bucket.cache_clear()
    _from_uri.cache_clear()

"""An S3-compatible object store on 127.0.0.1, in memory, that records its requests.

It is moto's server behind a gate, which accepts one key, records each request, and can answer some of
them itself, like a store that is busy or down.
"""

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs

from llkd.store import filesystems

KEY, SECRET = "key-of-this-store", "secret-of-this-store"

WSGIApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@dataclass(frozen=True)
class Request:
    """One request."""

    kind: str
    """GET, HEAD, PUT, LIST or DELETE. All requests of a multipart upload are PUT."""
    path: str
    """`bucket/key`; of a listing `bucket/prefix`."""
    stage: str
    """The stage that was set when it came."""


@dataclass
class ObjectStore:
    """Runs until the `with` block ends."""

    stage: str = ""
    """Recorded with each request from now on."""
    gate: Callable[[Request], str | None] | None = None
    """Called with each request: returns the status to answer, such as `503 Slow Down`, or None to
    serve it."""
    requests: list[Request] = field(default_factory=list)

    def __enter__(self) -> Self:
        from moto.moto_server.werkzeug_app import (
            DomainDispatcherApplication,
            create_backend_app,
        )
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line for each request
        self._app: WSGIApp = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of a process that uses it."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.port}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @contextmanager
    def in_environment(self) -> Iterator[None]:
        """Let this process and those that it starts use it for the duration of the block."""
        before = {name: os.environ.get(name) for name in self.environment}
        os.environ.update(self.environment)
        filesystems.forget_filesystems()
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
            filesystems.forget_filesystems()

    def make_bucket(self, name: str) -> str:
        """A new bucket; returns its URI."""
        from pyarrow import fs

        store = fs.S3FileSystem(
            endpoint_override=self.environment["AWS_ENDPOINT_URL"], region="us-east-1",
            access_key=KEY, secret_key=SECRET, allow_bucket_creation=True,
        )  # fmt: skip
        store.create_dir(name)
        return f"s3://{name}"

    def counted(self) -> Counter[str]:
        """Requests by kind."""
        return Counter(request.kind for request in self.requests)

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        request = Request(*_meaning(environ), stage=self.stage)
        self.requests.append(request)
        status = self.gate and self.gate(request)
        if f"Credential={KEY}/" not in environ.get("HTTP_AUTHORIZATION", ""):
            status = "403 Forbidden"
        if not status:
            return self._app(environ, start)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        code = "InvalidAccessKeyId" if status.startswith("403") else status[4:].replace(" ", "")
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{status}</Message></Error>"
        start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [] if request.kind == "HEAD" else [body.encode()]


def _meaning(environ: dict[str, Any]) -> tuple[str, str]:
    """(kind, path) of a request."""
    method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"].strip("/")
    query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
    if "list-type" in query:
        return "LIST", f"{path}/{query.get('prefix', [''])[0]}"
    if method == "POST":
        return ("DELETE" if "delete" in query else "PUT"), path
    return method, path

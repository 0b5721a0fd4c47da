"""An emulator of Google Cloud Storage on 127.0.0.1, in memory."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from llkd.store import filesystems
from tests.heads import answers, free_port

# Its own command serves one connection at a time, but pyarrow keeps several open. Its store is not
# thread-safe.
_SERVE = """
import http.server, logging, sys, threading
logging.basicConfig(level=logging.INFO)
from gcp_storage_emulator import server
server.server.HTTPServer = http.server.ThreadingHTTPServer
one, handle = threading.Lock(), server.Router.handle
def alone(*arguments):
    with one:
        handle(*arguments)
server.Router.handle = alone
server.create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="bucket").run()
"""


@contextlib.contextmanager
def google_store(log: Path) -> Iterator[str]:
    """The URI of an empty bucket. For the duration of the block this process and its children use the
    emulator, which writes a line per request to `log`.

    The emulator is a separate process: pyarrow 26 holds the interpreter lock while it requests the
    size of a file, and would wait for ever for a server in this process.
    """
    port = free_port()
    with log.open("w") as file:
        server = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(port)], stdout=file, stderr=file
        )
    os.environ["CLOUD_STORAGE_EMULATOR_ENDPOINT"] = f"http://127.0.0.1:{port}"
    filesystems.forget_filesystems()
    try:
        while not answers(port):
            assert server.poll() is None
            time.sleep(0.1)
        yield "gs://anonymous@bucket"
    finally:
        server.kill()
        server.wait()
        del os.environ["CLOUD_STORAGE_EMULATOR_ENDPOINT"]
        filesystems.forget_filesystems()

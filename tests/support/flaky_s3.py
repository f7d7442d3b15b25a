"""An object store in this process that fails like real ones: moto's S3, with added faults.

    with flaky_s3() as store:
        store.faults = [503, "cut"]        # of the next requests for objects, in reverse order
        fsspec.filesystem("s3").cat_file("bucket/name")

`store.late` contains names that listings do not show yet.
"""

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterator

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "x",
    "AWS_SECRET_ACCESS_KEY": "y",
    "AWS_DEFAULT_REGION": "us-east-1",
}

SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Slow</Message></Error>"


class FlakyStore:
    """A WSGI application that wraps moto's and adds faults."""

    def __init__(self) -> None:
        self.moto = DomainDispatcherApplication(create_backend_app)
        self.faults: list[int | str] = []
        self.late: set[str] = set()
        self.requests = 0
        self.choose: Callable[[], int | str | None] = lambda: None
        """Called for a fault when `faults` is empty."""

    def __call__(self, environment, start):
        reads = environment["REQUEST_METHOD"] == "GET"
        listing = reads and "list-type" in environment.get("QUERY_STRING", "")
        self.requests += 1
        fault = None
        if not listing:
            fault = self.faults.pop() if self.faults else self.choose()
        if fault == 503:
            start("503 Slow Down", [("Content-Type", "application/xml")])
            return [SLOW_DOWN]
        kept = []

        def hold(status, headers, *rest):
            kept.append((status, headers))
            return lambda data: None

        body = b"".join(self.moto(environment, hold))
        status, headers = kept[0]
        if listing:
            for name in self.late:
                pattern = rf"<Contents>\s*<Key>[^<]*{re.escape(name)}</Key>.*?</Contents>"
                body = re.sub(pattern.encode(), b"", body, flags=re.DOTALL)
            headers = [(k, v) for k, v in headers if k.lower() != "content-length"]
            headers.append(("Content-Length", str(len(body))))
        if fault == "cut" and reads:
            # With the length of the whole body in the headers, as when a connection breaks.
            body = body[: len(body) // 2]
        start(status, headers)
        return [body]


@contextlib.contextmanager
def flaky_s3() -> Iterator[FlakyStore]:
    """Yield the store; meanwhile the environment points all clients to its address."""
    store = FlakyStore()
    server = make_server("127.0.0.1", 0, store, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    before = dict(os.environ)
    os.environ.update(CREDENTIALS, AWS_ENDPOINT_URL=f"http://127.0.0.1:{server.server_port}")
    try:
        yield store
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.shutdown()

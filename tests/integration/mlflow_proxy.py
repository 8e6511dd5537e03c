"""A proxy before a real MLflow server, which counts, holds up, cuts short and refuses what it passes on."""

import http.client
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import orjson

ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"

_HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "host"}


class Proxy:
    """`uri` is a tracking URI for any process of this host."""

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.downloads: Counter[str] = Counter()
        """By name of the file, its directories left out."""
        self.listings = 0
        self.calls = 0
        """Of anything but listings and downloads."""
        self.change_body: Callable[[str, bytes], bytes] = lambda name, body: body
        self.change_listing: Callable[[list[Any]], list[Any]] = lambda files: files
        self.change_answer: Callable[[str, bytes], bytes] = lambda path, body: body
        self.passes = threading.Event()
        self.passes.set()
        self.is_away = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self.passes.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)

    def forget(self) -> None:
        self.downloads.clear()
        self.listings = self.calls = 0

    @contextmanager
    def held_up(self) -> Iterator[None]:
        """Files are sent only after the block."""
        self.passes.clear()
        try:
            yield
        finally:
            self.passes.set()

    def changed(self, path: str, body: bytes) -> bytes:
        """Notes an answer on its way back, and holds it up or changes it."""
        if not path.startswith(ARTIFACTS):
            self.calls += 1
            return self.change_answer(path, body)
        if "?" in path:
            self.listings += 1
            return orjson.dumps({"files": self.change_listing(orjson.loads(body).get("files", []))})
        name = path.rpartition("/")[2]
        self.downloads[name] += 1
        self.passes.wait(60)
        return self.change_body(name, body)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 65536  # head and body go together, and wait for nobody's acknowledgement

            def do_GET(self) -> None:
                if proxy.is_away:
                    self.close_connection = True
                    return
                sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                upstream = http.client.HTTPConnection(proxy.upstream, timeout=30)
                try:
                    headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP}
                    upstream.request(self.command, self.path, sent or None, headers | {"Accept-Encoding": "identity"})
                    answer = upstream.getresponse()
                    body = answer.read()
                finally:
                    upstream.close()
                if answer.status == 200:
                    body = proxy.changed(self.path, body)
                self.send_response(answer.status)
                for key, value in answer.headers.items():
                    if key.lower() not in _HOP_BY_HOP:
                        self.send_header(key, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

            def handle(self) -> None:
                try:
                    super().handle()
                except OSError:  # who asked was killed
                    self.close_connection = True

        return Handler

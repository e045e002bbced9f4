"""A Google Cloud Storage that serves the directories below one as its buckets, to tensorstore."""

import contextlib
import http.server
import json
import pathlib
import re
import threading
import urllib.parse
from collections.abc import Iterator

import tensorstore as ts

from clp_jax.models import t5x_checkpoints


class FakeGcs(http.server.ThreadingHTTPServer):
    """Lists and reads objects as the JSON API does.

    Attributes:
      requests: the target of each one so far.
      status: what every request is answered with, if it is not None.
      together: if above 1, a read waits (0.2 s at most) until so many are under way.
      most_at_once: the largest number of reads under way at the same time.
    """

    daemon_threads = True

    def __init__(self, root: pathlib.Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.requests: list[str] = []
        self.status: int | None = None
        self.together = 1
        self.most_at_once = 0
        self._at_once = 0
        self._changed = threading.Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        with self._changed:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.most_at_once >= self.together, timeout=0.2)
        try:
            yield
        finally:
            with self._changed:
                self._at_once -= 1


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet per answer: a second would wait for the first one's acknowledgement
    server: FakeGcs

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.requests.append(self.path)
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        match = re.fullmatch(r"/storage/v1/b/([^/]+)/o(?:/([^/]+))?", url.path)
        if self.server.status is not None:
            self._answer(self.server.status, b'{"error": {"message": "as the test wants it"}}')
        elif match is None or not (self.server.root / match[1]).is_dir():
            self._answer(404, b"{}")
        elif match[2] is None:
            self._list(self.server.root / match[1], query)
        else:
            with self.server.reading():
                self._read(self.server.root / match[1] / urllib.parse.unquote(match[2]))

    def _list(self, bucket: pathlib.Path, query: dict[str, str]) -> None:
        names = sorted(str(p.relative_to(bucket)) for p in bucket.rglob("*") if p.is_file())
        names = [
            name
            for name in names
            if name >= query.get("startOffset", "")
            and not ("endOffset" in query and name >= query["endOffset"])
            and name.startswith(query.get("prefix", ""))
        ]
        start, size = int(query.get("pageToken", 0)), 7  # small, so that pages matter
        page = {"items": [{"name": name} for name in names[start : start + size]]}
        if start + size < len(names):
            page["nextPageToken"] = str(start + size)
        self._answer(200, json.dumps(page).encode())

    def _read(self, path: pathlib.Path) -> None:
        if not path.is_file():
            self._answer(404, b"{}")
            return
        content = path.read_bytes()
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if match is None:
            self._answer(200, content)
            return
        if not match[1]:  # the last bytes
            first, last = max(0, len(content) - int(match[2])), len(content) - 1
        else:
            first, last = int(match[1]), int(match[2] or len(content) - 1)
        span = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
        self._answer(206, content[first : last + 1], span)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"x-goog-generation": "1", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def serve(root: pathlib.Path, monkeypatch) -> Iterator[FakeGcs]:
    """Starts one, and points `t5x_checkpoints` at it, with short retries."""
    server = FakeGcs(root)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", server.url)
    # Stores of one context go on with the address, and the connection, of the first.
    retries = {"max_retries": 2, "initial_delay": "10ms", "max_delay": "20ms"}
    monkeypatch.setattr(t5x_checkpoints, "_CONTEXT", ts.Context({"gcs_request_retries": retries}))
    # Else it looks for a user's credentials, and for a metadata server.
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

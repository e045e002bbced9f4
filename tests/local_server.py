"""A web server of a test's own."""

import http.server
import threading


class LocalServer:
    """Serves on a port of this machine from its making to `stop`.

    Args:
      answer: called with the request handler at each POST.
      path: of `url`.
    """

    def __init__(self, answer, path):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                answer(self)

            def log_message(self, *args):
                pass

        self.stopping = threading.Event()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}{path}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self):
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

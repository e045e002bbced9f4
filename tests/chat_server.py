"""A chat model behind HTTP, as far as the tests of judges need one."""

import http.server
import json
import threading


def completion(content, **choice):
    """The JSON of a chat completion."""
    return {"choices": [{"message": {"role": "assistant", "content": content}, **choice}]}


def shorter(request):
    """Names the shorter summary of a request, which it finds by the prompt's headings."""
    text = request["messages"][0]["content"]
    first = text.split("\nSUMMARY1:\n")[1].split("\n\nSUMMARY2:\n")[0]
    second = text.split("\nSUMMARY2:\n")[1].split("\n\nWhich")[0]
    return completion("SUMMARY1" if len(first) < len(second) else "SUMMARY2")


class ChatServer:
    """Answers from a script, and prefers the shorter summary when that is at its end.

    Attributes:
      script: what the next requests get: (status, body), a function of the JSON that came, or None
        for the usual answer.
      requests: (path, headers, JSON) of those that came.
      most: requests that were being answered at a time, at most.
      delay: seconds that each answer takes; a function of the JSON.
    """

    def __init__(self):
        self.script, self.requests, self.most, self._now = [], [], 0, 0
        self.delay = lambda request: 0.0
        self.stopping, lock, outer = threading.Event(), threading.Lock(), self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.requests.append((self.path, dict(self.headers), body))
                    outer._now += 1
                    outer.most = max(outer.most, outer._now)
                    step = (outer.script.pop(0) if outer.script else None) or shorter
                outer.stopping.wait(outer.delay(body))
                status, answer = step if isinstance(step, tuple) else (200, step(body))
                content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                with lock:
                    outer._now -= 1
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                except ConnectionError:  # the client did not wait
                    pass

            def log_message(self, *args):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self):
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

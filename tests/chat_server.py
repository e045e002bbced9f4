"""A chat model behind HTTP, as far as the tests of judges need one."""

import json
import threading

from local_server import LocalServer


def completion(content, **choice):
    """The JSON of a chat completion."""
    return {"choices": [{"message": {"role": "assistant", "content": content}, **choice}]}


def shorter(request):
    """Names the shorter summary of a request, which it finds by the prompt's headings."""
    text = request["messages"][0]["content"]
    first = text.split("\nSUMMARY1:\n")[1].split("\n\nSUMMARY2:\n")[0]
    second = text.split("\nSUMMARY2:\n")[1].split("\n\nWhich")[0]
    return completion("SUMMARY1" if len(first) < len(second) else "SUMMARY2")


class ChatServer(LocalServer):
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
        self._lock = threading.Lock()
        super().__init__(self._answer, "/v1")

    def _answer(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            self.requests.append((handler.path, dict(handler.headers), body))
            self._now += 1
            self.most = max(self.most, self._now)
            step = (self.script.pop(0) if self.script else None) or shorter
        self.stopping.wait(self.delay(body))
        status, answer = step if isinstance(step, tuple) else (200, step(body))
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        with self._lock:
            self._now -= 1
        try:
            handler.send_response(status)
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content)
        except ConnectionError:  # the client did not wait
            pass

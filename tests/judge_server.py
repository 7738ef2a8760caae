"""A chat endpoint on this machine, as OpenAI's: what it says is up to the test."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def serve(say: Callable[[dict, int], object]) -> Iterator[tuple[str, list[tuple[dict, dict]]]]:
    """Serve; gives the address and the list of requests: body and headers.

    `say` is given a request's body and its number, and returns the text of an answer, or a status with headers.
    """
    seen: list[tuple[dict, dict]] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                seen.append((body, dict(self.headers)))
                answer = say(body, len(seen))
            status, headers, content = 200, {}, {"choices": [{"message": {"role": "assistant", "content": answer}}]}
            if isinstance(answer, tuple):
                status, headers, content = answer
            data = json.dumps(content).encode()
            self.send_response(status if self.path == "/v1/chat/completions" else 404)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1", seen
        finally:
            server.shutdown()
            thread.join()

"""A web server for tests."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def served(folder, *, faults=()):
    """A web server of a folder, with parts and versions; each of its first answers has a fault.

    A fault is a status, or a number of bytes after which it ends, or "stall".
    """
    asked, waiting, end = [], list(faults), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Range"), self.headers.get("If-Range")))
            fault = waiting.pop(0) if waiting else None
            path = folder / self.path.partition("?")[0][1:]
            if fault in (404, 503):
                self.send_error(fault)
                return
            content = path.read_bytes()
            start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.send_header("ETag", '"one"')
            self.end_headers()
            self.wfile.write(content[start:][: fault if isinstance(fault, int) else None] if fault != "stall" else b"")
            if fault == "stall":
                end.wait(30)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        end.set()
        server.shutdown()
        thread.join()
        server.server_close()

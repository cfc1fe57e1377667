"""Server: the page at an address of this machine."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from .document import page


def serve(port: int) -> ThreadingHTTPServer:
    """Server of the page that only this machine reaches. ``serve_forever()`` starts it.

    Args:
        port: port of the loopback interface, or 0 for any free one.

    Raises:
        OSError: the port is taken or not allowed.
    """
    content = page().encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path.partition("?")[0] == "/"
            body = content if found else b"The page is at /\n"
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", f"text/{'html' if found else 'plain'}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Log no requests."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)

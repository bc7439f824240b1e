"""A recorder on Python's http.server: `record.py PORT FILE` answers every request and writes what it saw of it.

One line of JSON for each request that arrived whole, before the answer. Header names are compared as WSGI and CGI
would, which cannot tell `_` from `-`.
"""

import http.client
import http.server
import json
import sys
import threading

http.client._MAXHEADERS = 1000


class Recorder(http.server.BaseHTTPRequestHandler):
    """Any method will do."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    lock = threading.Lock()

    def __getattr__(self, name):
        if name.startswith("do_"):
            return self.record
        raise AttributeError(name)

    def record(self):
        """Reads the body, writes the line, answers."""
        try:
            body, trailers = self.body()
        except (EOFError, ValueError):
            self.close_connection = True
            return
        names = [(name.lower().replace("_", "-"), value) for name, value in self.headers.items()]
        seen = {
            "method": self.command,
            "target": self.path,
            "body": body.decode("latin-1"),
            "caller": [value for name, value in names if name == "x-forwarded-client-cert"],
            "headers": self.headers.items(),
            "trailers": trailers,
        }
        with self.lock, open(sys.argv[2], "a", encoding="utf-8") as file:
            file.write(json.dumps(seen) + "\n")
        text = f"{self.command} {self.path}".encode()
        self.send_response(200)
        self.send_header("x-seen", text.decode())
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def body(self):
        """The body and the names of the trailers; an error if it breaks off."""
        if self.headers.get("transfer-encoding", "").lower().strip() == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.exactly(size)
                self.exactly(2)
            trailers = []
            while (line := self.rfile.readline()) not in (b"\r\n", b"\n"):
                if not line:
                    raise EOFError
                trailers.append(line.split(b":")[0].decode("latin-1").lower().replace("_", "-"))
            return body, trailers
        return self.exactly(int(self.headers.get("content-length", 0))), []

    def exactly(self, size):
        """So many bytes."""
        read = self.rfile.read(size)
        if len(read) < size:
            raise EOFError
        return read

    def log_message(self, *arguments):
        """The lines are the log."""


http.server.ThreadingHTTPServer.request_queue_size = 128
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Recorder).serve_forever()

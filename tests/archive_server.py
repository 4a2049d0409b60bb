"""A server of CIFAR-10's archive on loopback, with all that can go wrong."""

import contextlib
import http.server
import socket
import struct
import threading
import time

PATIENCE = 10  # seconds; whoever has not given up by then fails the test


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the path asked for says, and notes it."""

    content: bytes
    asked: list[str]
    over: threading.Event  # set when the test is over

    def do_GET(self) -> None:
        """Answer one request."""
        kind = self.path[1:]
        self.asked.append(kind)
        if kind == "missing":
            self.send_error(404)
            return
        if kind == "redirect":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
            return
        if kind == "silent":
            self.over.wait(PATIENCE)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        half = self.content[: len(self.content) // 2]
        if kind == "whole":
            time.sleep(0.2)  # so that two processes at once would both be here
            self.wfile.write(self.content)
        elif kind == "wrong":
            self.wfile.write(self.content[:-1] + b"!")
        elif kind == "short":
            self.wfile.write(half)
        elif kind == "reset":
            self.wfile.write(half)
            self.wfile.flush()
            linger = struct.pack("ii", 1, 0)  # closing sends a reset
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            for stream in (self.rfile, self.wfile, self.connection):
                stream.close()
            raise ConnectionResetError
        elif kind == "stalled":
            self.wfile.write(half)
            self.over.wait(PATIENCE)
        elif kind == "slow":
            for byte in half[: int(PATIENCE / 0.02)]:
                self.wfile.write(bytes([byte]))
                time.sleep(0.02)

    def handle(self) -> None:
        """Do not mind when the client has gone."""
        with contextlib.suppress(ConnectionError):
            super().handle()

    def log_message(self, *args: object) -> None:
        """Say nothing."""


class Server:
    """Serves the archive on loopback."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.asked: list[str] = []
        self.over = threading.Event()
        members = {"content": content, "asked": self.asked, "over": self.over}
        handler = type("Handler", (Handler,), members)
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def url(self, kind: str) -> str:
        """The address with one of the faults above."""
        return f"http://127.0.0.1:{self.server.server_port}/{kind}"

    def close(self) -> None:
        """Let go of all who wait."""
        self.over.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

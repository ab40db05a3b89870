"""Servers of live video on loopback, in a thread: HTTP answers as a test writes them, and a small RTSP server."""

import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np


def write_stream(path: Path, brightness: int = 100, *, kind: str = "mpegts", starts_at: int = 0) -> Path:
    """24 frames of 32×32, 25 a second, from `starts_at` seconds on. Each is a little lighter than the one before, and
    all are key frames."""
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream(
            "mjpeg" if kind == "mpjpeg" else "mpeg2video", rate=25 if kind == "mpegts" else 8
        )
        stream.width = stream.height = 32
        stream.pix_fmt = "yuvj420p" if kind == "mpjpeg" else "yuv420p"
        stream.codec_context.gop_size = 1
        for number in range(24):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), brightness + number, np.uint8), format="rgb24")
            if starts_at:
                frame.pts, frame.time_base = 25 * starts_at + number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


Respond = Callable[[BaseHTTPRequestHandler, int], None]  # the second is the number of the request, from 0


@contextmanager
def http_server(respond: Respond) -> Iterator[str]:
    """An HTTP server; gives its address."""
    numbers, lock = iter(range(1000)), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            with lock:
                number = next(numbers)
            respond(self, number)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/stream"
        server.shutdown()


def send(
    handler: BaseHTTPRequestHandler, content: bytes, *, says_length: bool = True, kind: str = "video/mp2t"
) -> None:
    """An answer; one that does not say its length ends when the connection does, as that of a broken stream."""
    handler.send_response(200)
    if says_length:
        handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


@contextmanager
def rtsp_server(transport_stream: bytes) -> Iterator[str]:
    """A server that sends a transport stream (RFC 2326 with RFC 2250), inside the connection of the requests, and then
    hangs up; gives its address."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            while line := self.rfile.readline():
                method, *_ = line.decode().split() or [""]
                headers = {}
                while (line := self.rfile.readline().strip()) != b"":
                    name, _, value = line.decode().partition(":")
                    headers[name.lower()] = value.strip()
                extra, body = "", b""
                if method == "OPTIONS":
                    extra = "Public: OPTIONS, DESCRIBE, SETUP, PLAY\r\n"
                elif method == "DESCRIBE":
                    lines = ["v=0", "o=- 0 0 IN IP4 127.0.0.1", "s=-", "t=0 0", "m=video 0 RTP/AVP 33", "a=control:1"]
                    body = "\r\n".join([*lines, ""]).encode()
                    extra = f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
                elif method == "SETUP":
                    extra = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n"
                self.wfile.write(f"RTSP/1.0 200 OK\r\nCSeq: {headers['cseq']}\r\n{extra}\r\n".encode() + body)
                if method == "PLAY":
                    for number, start in enumerate(range(0, len(transport_stream), 7 * 188)):
                        packet = struct.pack(">BBHII", 0x80, 33, number, 3600 * number, 1)
                        packet += transport_stream[start : start + 7 * 188]
                        self.wfile.write(struct.pack(">cBH", b"$", 0, len(packet)) + packet)
                    return

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"rtsp://127.0.0.1:{server.server_address[1]}/stream"
        server.shutdown()

"""Just enough of HTTP/2 to misbehave in it."""

import socket
import struct
import threading
import time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, GOAWAY, HEADERS = 4, 6, 7, 1


def frame(kind, payload=b"", flags=0, stream=0):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def connect(address, source="127.0.0.1"):
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=20, source_address=(source, 0))


def read_frames(connection):
    """(kind, payload) of each frame until the other side closes."""
    data = b""
    while True:
        while len(data) >= 9 and len(data) >= 9 + int.from_bytes(data[:3], "big"):
            end = 9 + int.from_bytes(data[:3], "big")
            yield data[3], data[9:end]
            data = data[end:]
        try:
            more = connection.recv(65536)
        except ConnectionResetError:
            return
        if not more:
            return
        data += more


def is_closed(connection, seconds=0.0):
    """Whether the other side closes it within the time; what it sends before is dropped."""
    deadline = time.monotonic() + seconds
    while True:
        connection.settimeout(max(deadline - time.monotonic(), 0.01))
        try:
            if not connection.recv(65536):
                return True
        except TimeoutError:
            return False
        except ConnectionResetError:
            return True


def open_call(stream, path, *headers):
    """A HEADERS frame that begins a call and does not end it."""
    block = b""
    for name, value in [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost"),
                        ("te", "trailers"), ("content-type", "application/grpc"), *headers]:
        block += b"\0" + b"".join(bytes([len(text)]) + text.encode() for text in (name, value))
    end_headers = 4
    return frame(HEADERS, block, end_headers, stream)


class Forwarder:
    """Another client: an address whose connections go on to a daemon from another IP address of this machine."""

    def __init__(self, address, source):
        self._daemon, self._source = address, source
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self._listener.close()

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
                far = connect(self._daemon, self._source)
            except OSError:
                return
            near.settimeout(None)
            far.settimeout(None)
            for ends in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=ends, daemon=True).start()

    @staticmethod
    def _pump(source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # either end has had enough

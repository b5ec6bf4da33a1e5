"""Just enough of HTTP/2 to misbehave in it."""

import socket
import struct
import threading
import time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 1, 3, 4, 6, 7, 8, 9


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


def header_field(name, value):
    """A literal that no table takes."""
    return b"\0" + b"".join(bytes([len(text)]) + text.encode() for text in (name, value))


def open_call(stream, path, *headers, flags=4):
    """A HEADERS frame that begins a call and does not end it; with flags=0 the headers go on, too."""
    block = b""
    for name, value in [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost"),
                        ("te", "trailers"), ("content-type", "application/grpc"), *headers]:
        block += header_field(name, value)
    return frame(HEADERS, block, flags, stream)


class Sender:
    """A connection that sends as much as HTTP/2's windows let it."""

    def __init__(self, address):
        self.connection = connect(address)
        self.connection.sendall(PREFACE + frame(SETTINGS) + frame(SETTINGS, flags=1))
        self._received = b""
        self._initial, self._windows = 65535, {0: 65535}

    def open(self, stream, path, *headers):
        self._windows[stream] = self._initial
        self.connection.sendall(open_call(stream, path, *headers))

    def send(self, stream, data):
        """How many of the bytes could go; those that could not within two seconds have no window."""
        sent = 0
        while sent < len(data):
            room = min(self._windows[0], self._windows[stream], len(data) - sent, 16384)
            if room <= 0:
                if not self.hear():
                    break
                continue
            self.connection.sendall(frame(0, data[sent:sent + room], 0, stream))
            sent += room
            self._windows[0] -= room
            self._windows[stream] -= room
        return sent

    def window(self, stream):
        """Bytes that may be sent; of the connection for 0."""
        return self._windows[stream]

    def hear(self):
        """Takes what the other side says of its windows; False when it says nothing for two seconds."""
        self.connection.settimeout(2)
        try:
            more = self.connection.recv(65536)
        except TimeoutError:
            return False
        if not more:
            raise ConnectionError("closed")
        self._received += more
        while len(self._received) >= 9 and len(self._received) >= 9 + int.from_bytes(self._received[:3], "big"):
            end = 9 + int.from_bytes(self._received[:3], "big")
            kind, flags = self._received[3], self._received[4]
            stream, payload = int.from_bytes(self._received[5:9], "big"), self._received[9:end]
            self._received = self._received[end:]
            if kind == WINDOW_UPDATE:
                self._windows[stream] = self._windows.get(stream, self._initial) + int.from_bytes(payload, "big")
            elif kind == SETTINGS and not flags & 1:
                self._settings(payload)
            elif kind == PING and not flags & 1:
                self.connection.sendall(frame(PING, payload, flags=1))
        return True

    def _settings(self, payload):
        for at in range(0, len(payload), 6):
            if payload[at:at + 2] == b"\x00\x04":
                initial = int.from_bytes(payload[at + 2:at + 6], "big")
                for stream in self._windows:
                    if stream != 0:
                        self._windows[stream] += initial - self._initial
                self._initial = initial
        self.connection.sendall(frame(SETTINGS, flags=1))


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

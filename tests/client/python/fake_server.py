"""A server of stock parts that says what a test tells it to."""

from concurrent import futures

import grpc
from kvcompress.v1 import kvcompress_pb2 as pb

SERVICE = "kvcompress.v1.KvCompression"


def capabilities(version, **fields):
    build = pb.BuildInfo(version=version)
    limits = pb.Limits(max_message_bytes=4 << 20)
    said = pb.CapabilitiesResponse(build=build, limits=limits, recommended_message_bytes=1 << 20, **fields)
    return said.SerializeToString()


class FakeServer:
    """`unary` and `streams` give, by method, functions of the requests and the context: answers as bytes."""

    def __init__(self, version, unary=None, streams=None, credentials=None):
        handlers = {}
        for method, work in {"Capabilities": lambda *_: capabilities(version), **(unary or {})}.items():
            handlers[method] = grpc.unary_unary_rpc_method_handler(work)
        for method, work in (streams or {}).items():
            handlers[method] = grpc.stream_stream_rpc_method_handler(work)
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
        if credentials is None:
            port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            port = self._server.add_secure_port("localhost:0", credentials)
        self.address = f"localhost:{port}" if credentials else f"127.0.0.1:{port}"

    def __enter__(self):
        self._server.start()
        return self

    def __exit__(self, *_):
        self._server.stop(0).wait()

"""Messages as others may write them: stock clients and servers, and every encoding that protobuf takes."""

import random
import subprocess
from concurrent import futures

import grpc
import numpy as np
import pytest
from cli_helpers import File, environment, write_file
from daemon_helpers import SERVICE, Client, random_array
from google.protobuf.message import DecodeError

LENGTH_DELIMITED = 2


def varint(value, padding=0):
    """Of any length up to ten bytes: the padding is bytes that add nothing."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    for _ in range(padding):
        out[-1] |= 0x80
        out.append(0)
    return bytes(out)


def bytes_field(number, value, tag_padding=0, length_padding=0):
    return varint(number << 3 | LENGTH_DELIMITED, tag_padding) + varint(len(value), length_padding) + value


# A varint, a string, eight and four bytes, a group, of fields that nobody knows.
UNKNOWN = [varint(1000 << 3) + varint(7), bytes_field(999, b"unknown"), varint(99 << 3 | 1) + bytes(8),
           varint(98 << 3 | 5) + bytes(4), varint(97 << 3 | 3) + varint(1 << 3) + varint(1) + varint(97 << 3 | 4)]


def encodings(number, payload):
    """Ways to write the field `number` that holds `payload`."""
    plain = bytes_field(number, payload)
    yield plain
    for unknown in UNKNOWN:
        yield unknown + plain
        yield plain + unknown
    yield bytes_field(number, payload, tag_padding=1)
    yield bytes_field(number, payload, tag_padding=3)
    yield bytes_field(number, payload, length_padding=1)
    yield bytes_field(number, payload, length_padding=2, tag_padding=2)


def payload_encodings(number, payload):
    """Ways to write the message whose payload are these bytes."""
    plain = bytes_field(number, payload)
    yield from encodings(number, payload)
    # Of a field that is there twice the last counts, and so does the last of a oneof.
    yield bytes_field(number, b"") + plain
    yield bytes_field(number, b"something else") + plain
    yield bytes_field(number, b"longer than " + payload) + plain
    yield bytes_field(1, b"") + plain


def raw(daemon, method):
    return daemon.channel().stream_stream(f"/{SERVICE}/{method}", lambda message: message, lambda message: message)


def test_every_encoding_of_a_payload_means_the_same(daemon, stubs):
    server = daemon("--threads", "1")
    client = Client(server, stubs)
    pb = stubs.pb
    array = random_array(64)
    frame = client.compress({"t": array})[0]["t"]
    values = client.decompress({"t": frame})[0]["t"].tobytes()
    directions = [
        ("Compress", pb.CompressRequest, "data", client.header("t", [64]), array.tobytes(), pb.CompressResponse,
         lambda response: response.frame, frame),
        ("Decompress", pb.DecompressRequest, "frame", client.frame_header("t"), frame, pb.DecompressResponse,
         lambda response: response.data, values),
    ]
    for method, request, field, header, payload, response, output, expected in directions:
        call = raw(server, method)
        number = request.DESCRIPTOR.fields_by_name[field].number
        for message in payload_encodings(number, payload):
            assert getattr(request.FromString(message), field) == payload
            answers = [response.FromString(answer)
                       for answer in call(iter([header.SerializeToString(), message]), timeout=30)]
            assert b"".join(map(output, answers)) == expected, message.hex()
            assert answers[-1].stream.tensors == 1


def test_every_encoding_of_a_tensor_in_one_message_means_the_same(daemon, stubs):
    server = daemon("--threads", "1")
    client = Client(server, stubs)
    pb = stubs.pb
    array = random_array(64)
    frame = client.compress({"t": array})[0]["t"]
    values = client.decompress({"t": frame})[0]["t"].tobytes()
    directions = [
        ("CompressTensor", pb.CompressTensorRequest, "data", client.header("t", [64]).header, array.tobytes(),
         pb.CompressTensorResponse, lambda response: response.frame, frame),
        ("DecompressTensor", pb.DecompressTensorRequest, "frame", client.frame_header("t").header, frame,
         pb.DecompressTensorResponse, lambda response: response.data, values),
    ]
    for method, request, field, header, payload, response, output, expected in directions:
        call = server.channel().unary_unary(f"/{SERVICE}/{method}", lambda message: message, response.FromString)
        header = header.SerializeToString()
        messages = [head + body for head in encodings(1, header) for body in encodings(2, payload)]
        messages += [body + bytes_field(1, header) for body in encodings(2, payload)]
        messages += [bytes_field(2, b"the first of two") + bytes_field(1, header) + bytes_field(2, payload),
                     bytes_field(1, header) + bytes_field(2, payload + b"x") + bytes_field(2, payload),
                     bytes_field(1, header) + bytes_field(2, payload) + bytes_field(1, header[:0])]
        for message in messages:
            assert getattr(request.FromString(message), field) == payload
            assert output(call(message, timeout=30)) == expected, message.hex()


def test_every_encoding_of_a_header_means_the_same(daemon, stubs):
    server = daemon("--threads", "1")
    client = Client(server, stubs)
    pb = stubs.pb
    array = random_array(64)
    codec = "int8(group=32)"
    expected = client.compress({"t": array}, codec=codec)[0]["t"]
    tensor, spec = (bytes_field(1, client.header("t", [64]).header.tensor.SerializeToString()),
                    bytes_field(2, codec.encode()))
    # A message that is there twice is merged.
    headers = list(encodings(1, tensor + spec)) + [
        bytes_field(1, tensor) + bytes_field(1, spec),
        bytes_field(1, spec) + bytes_field(1, tensor),
        bytes_field(2, b"bytes of a tensor that never were") + bytes_field(1, tensor + spec),
        bytes_field(1, spec + UNKNOWN[0] + tensor),
        # The shape's elements one by one, and not packed.
        bytes_field(1, bytes_field(1, bytes_field(1, b"t") + varint(2 << 3) + varint(1) + varint(3 << 3) + varint(64))
                    + spec),
    ]
    for header in headers:
        parsed = pb.CompressRequest.FromString(header).header
        assert (parsed.tensor.name, parsed.codec, list(parsed.tensor.shape)) == ("t", codec, [64])
        call = raw(server, "Compress")(iter([header, client.data(array.tobytes()).SerializeToString()]), timeout=30)
        answers = [pb.CompressResponse.FromString(answer) for answer in call]
        assert b"".join(answer.frame for answer in answers) == expected, header.hex()


@pytest.mark.parametrize("message", [
    b"\x12",                                        # a tag, and no length
    b"\x12\x05abc",                                 # shorter than its length
    b"\x12" + b"\xff" * 9 + b"\x01abc",             # a length of 64 bits
    b"\x12" + b"\xff" * 10 + b"\x01abc",            # a varint of 11 bytes
    bytes_field(2, b"abcd")[:-1],
    bytes_field(2, b"abcd") + b"\x0b",              # a group that does not end
    b"\x00\x00",                                    # field 0
], ids=lambda message: message.hex())
def test_what_protobuf_does_not_take_we_do_not_take(daemon, stubs, message):
    server = daemon("--threads", "1")
    client = Client(server, stubs)
    with pytest.raises(DecodeError):
        stubs.pb.CompressRequest.FromString(message)
    requests = [client.header("t", [2]).SerializeToString(), message]
    with pytest.raises(grpc.RpcError) as error:
        list(raw(server, "Compress")(iter(requests), timeout=30))
    assert (error.value.code(), error.value.details()) == (
        grpc.StatusCode.INVALID_ARGUMENT, "message cannot be parsed")
    client.wait_until_idle()


# --- a stock server in front of the daemon ----------------------------------------------------------------------------


class Proxy:
    """A server of stock parts that passes both streaming methods on, and has none of the others."""

    def __init__(self, stubs, daemon, encode=None):
        upstream = Client(daemon, stubs).stub
        self.calls = {"Compress": 0, "Decompress": 0}

        def passing(method):
            def handle(requests, _):
                self.calls[method] += 1
                yield from getattr(upstream, method)(requests, timeout=60)
            return handle

        def handler(method, request, response):
            return grpc.stream_stream_rpc_method_handler(
                passing(method), request_deserializer=request.FromString,
                response_serializer=lambda message: (encode or response.SerializeToString)(message))
        pb = stubs.pb
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, {
            "Compress": handler("Compress", pb.CompressRequest, pb.CompressResponse),
            "Decompress": handler("Decompress", pb.DecompressRequest, pb.DecompressResponse),
        })])
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self):
        self._server.start()
        return self

    def __exit__(self, *_):
        self._server.stop(0).wait()


def odd_encoding():
    """An encoder that writes payloads in one after another of the ways that there are."""
    choice = random.Random(3)
    fields = {"frame": 1, "data": 2}

    def encode(message):
        kind = message.WhichOneof("payload")
        if kind in fields:
            payload = choice.choice(list(payload_encodings(fields[kind], getattr(message, kind))))
            message.ClearField(kind)
            rest = message.SerializeToString()  # what it says of the tensors of a batch
            return choice.choice([rest + payload, payload + rest])
        return choice.choice(UNKNOWN) + message.SerializeToString()
    return encode


def compress_and_back(bin_dir, folder, source, *flags):
    """Both files that the command line makes of `source`."""
    packed, back = folder / "packed.safetensors", folder / "back.safetensors"
    for arguments in (["-input", source, "-output", packed], ["-decompress", "-input", packed, "-output", back]):
        done = subprocess.run([bin_dir / "kv-compress", *map(str, arguments), *flags], capture_output=True, text=True,
                              timeout=100, env=environment())
        assert done.returncode == 0, done.stderr
    return packed.read_bytes(), back.read_bytes()


@pytest.mark.parametrize("encode", [None, odd_encoding()], ids=["stock", "odd"])
def test_our_client_and_a_server_of_stock_parts(bin_dir, daemon, stubs, tmp_path, encode):
    rng = np.random.default_rng(4)
    source = write_file(tmp_path / "in.safetensors",
                        {f"layer_{i}_key": rng.standard_normal((1, 2, 5000, 64)).astype(np.float16) for i in range(6)})
    expected = compress_and_back(bin_dir, tmp_path, source)
    with Proxy(stubs, daemon("--threads", "2"), encode) as proxy:
        assert compress_and_back(bin_dir, tmp_path, source, "-server", proxy.address) == expected
    assert proxy.calls == {"Compress": 1, "Decompress": 1}
    assert File(tmp_path / "back.safetensors").layout == File(source).layout

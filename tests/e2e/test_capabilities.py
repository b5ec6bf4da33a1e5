"""What a daemon says about itself, and whether it is true."""

import grpc
import pytest
from daemon_helpers import MIB, Client, random_array


def ask(client, *headers):
    headers = [request.header for request in headers]
    return client.stub.Capabilities(client.pb.CapabilitiesRequest(headers=headers), timeout=30)


def test_settings_are_told(daemon, stubs):
    client = Client(daemon("--max-tensor-bytes", "12345", "--max-streams", "7", "--memory-budget", "64MiB",
                           "--default-codec", "int8(group=32)", "--shared-memory", "kvc-e2e-",
                           "--foreign-memory", "kvc-engine-"), stubs)
    said = ask(client)
    limits = said.limits
    assert (limits.max_tensor_bytes, limits.max_streams, limits.memory_budget_bytes) == (12345, 7, 64 * MIB)
    assert (limits.max_rank, limits.max_name_bytes, limits.max_message_bytes) == (8, 1024, 4 * MIB)
    assert said.default_codec == "int8(group=32)" and said.recommended_message_bytes == MIB
    assert list(said.dtypes) == [number for number in client.pb.DType.values() if number]
    assert said.shared_memory_prefix == "kvc-e2e-" and said.foreign_memory_prefix == "kvc-engine-"
    assert said.build == client.metrics().build and said.build.frame_version == 3
    assert list(said.max_frame_bytes) == []


def test_transports(daemon, stubs, socket_dir):
    tcp = Client(daemon(), stubs)
    both = Client(daemon("--listen", f"unix:{socket_dir}/s"), stubs)
    assert list(ask(tcp).transports) == [tcp.pb.TRANSPORT_TCP]
    assert ask(tcp).shared_memory_prefix == ask(tcp).foreign_memory_prefix == ""
    assert list(ask(both).transports) == [tcp.pb.TRANSPORT_TCP, tcp.pb.TRANSPORT_UNIX]


def test_every_codec_works_as_its_example(client):
    said = ask(client)
    assert {codec.stage for codec in said.codecs} == {"transform", "tensor codec", "byte codec"}
    assert {"int4", "raw", "zstd", "sparse", "clamp"} <= {codec.name for codec in said.codecs}
    for codec in said.codecs:
        assert codec.name in codec.example
        _, reports, _ = client.compress({"layer_0_key": random_array((1, 4, 5, 50))}, codec=codec.example)
        assert reports["layer_0_key"].codec == codec.example


@pytest.mark.parametrize("shape", [(), (0,), (1,), (1000,), (3, 7, 64), (2, 300_001)])
def test_no_frame_is_larger_than_its_bound(client, shape):
    array = random_array(shape)
    codecs = ["", "raw", "int4(group=32)", "int3(group=64)", "raw|zstd(level=1)", "sparse(ratio=0.5)|int8(group=64)"]
    bounds = ask(client, *(client.header("t", shape, codec) for codec in codecs)).max_frame_bytes
    assert len(bounds) == len(codecs)
    for codec, bound in zip(codecs, bounds):
        frame = client.compress({"t": array}, codec=codec)[0]["t"]
        assert len(frame) <= bound
        if codec in ("", "raw", "int4(group=32)", "int3(group=64)"):
            assert len(frame) == bound, codec


@pytest.mark.parametrize("header, code", [
    (lambda client: client.header("t", [8], "int9"), "INVALID_ARGUMENT"),
    (lambda client: client.header("t", [8], dtype=0), "INVALID_ARGUMENT"),
    (lambda client: client.header("", [8]), "INVALID_ARGUMENT"),
    (lambda client: client.header("t", [1 << 63, 2]), "INVALID_ARGUMENT"),
    (lambda client: client.header("t", [1 << 40]), "RESOURCE_EXHAUSTED"),
    (lambda client: client.pb.CompressRequest(header=client.pb.CompressHeader()), "INVALID_ARGUMENT"),
])
def test_a_tensor_is_refused_as_compress_would(client, header, code):
    with pytest.raises(grpc.RpcError) as asked:
        ask(client, header(client))
    with pytest.raises(grpc.RpcError) as compressed:
        list(client.stub.Compress(iter([header(client)]), timeout=30))
    assert asked.value.code().name == compressed.value.code().name == code
    assert asked.value.details() == compressed.value.details()


def test_headers_are_limited(client):
    header = client.header("t", [8], "raw")
    assert len(ask(client, *[header] * 4096).max_frame_bytes) == 4096
    with pytest.raises(grpc.RpcError) as error:
        ask(client, *[header] * 4097)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_names_stand_for_the_codecs_that_are_told(daemon, stubs):
    client = Client(daemon("--default-codec", "mixed"), stubs)
    named = {chain.name: chain for chain in ask(client).named_chains}
    assert {"kv4", "kv3", "kv2", "lossless", "lossless-fast", "int4", "int8", "near-lossless", "mixed"} <= set(named)
    tensors = {f"layer_{layer}_{kind}": random_array((1, 4, 5, 50)) for layer in (0, 1, 2, 9) for kind in ("key", "value")}

    def codecs(name):
        return [report.codec for report in client.compress(tensors, codec=name)[1].values()]

    for chain in named.values():
        assert chain.purpose
        assert codecs(chain.name) == [
            chain.first_codec if int(tensor[6]) < chain.first_layers
            else chain.value_codec if chain.value_codec and tensor.endswith("value") else chain.codec
            for tensor in tensors]
    assert codecs("") == codecs("mixed")
    assert len(set(codecs(""))) == 2 and len(set(codecs("kv3"))) == 2

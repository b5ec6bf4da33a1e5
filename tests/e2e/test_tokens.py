"""Bearer tokens: which calls need one, and what is said to those without."""

import subprocess

import grpc
import pytest
from daemon_helpers import SERVICE, Client, Feed, failure, page, page_value, wait_for
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2_grpc

TOKEN = "correct-horse-battery-staple-0001"
OTHER = "another-horse-battery-staple-0002"
NEEDED = 'a token is needed: send the metadata "authorization: Bearer TOKEN"'
UNKNOWN = "the token is not one that this daemon knows"


def bearer(token):
    return [("authorization", f"Bearer {token}")]


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "tokens"
    path.write_text(f"# one of a team\n{TOKEN}\n\n{OTHER}\n")
    return path


def outcome(channel, path, streaming=True, metadata=None):
    """The status of a call whose input is empty; the wrong kind of call is told apart by what it says."""
    kind = channel.stream_stream if streaming else channel.unary_unary
    call = kind(path, lambda message: message, lambda message: message)
    try:
        result = call(iter([]) if streaming else b"", timeout=10, metadata=metadata)
        if streaming:
            list(result)
    except grpc.RpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""


def methods(stubs):
    """Each method of each service that the daemon has, but for health: path and whether it is a stream."""
    service = stubs.pb.DESCRIPTOR.services_by_name[SERVICE.rsplit(".", 1)[1]]
    assert service.full_name == SERVICE and len(service.methods) >= 7
    paths = [(f"/{SERVICE}/{method.name}", method.client_streaming) for method in service.methods]
    return [*paths, ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", True)]


def test_no_method_but_health_goes_without(daemon, stubs, token_file):
    server = daemon("--token-file", str(token_file))
    channel = server.channel()
    for path, streaming in methods(stubs):
        for metadata, said in [(None, NEEDED), ([("authorization", TOKEN)], NEEDED), (bearer(TOKEN + "x"), UNKNOWN),
                               (bearer(""), UNKNOWN), (bearer("x" * 4000), UNKNOWN)]:
            assert outcome(channel, path, streaming, metadata) == (grpc.StatusCode.UNAUTHENTICATED, said), path
        for token in (TOKEN, OTHER):
            assert outcome(channel, path, streaming, bearer(token))[0] != grpc.StatusCode.UNAUTHENTICATED, path
    # What there is not, and what only looks like health, is no way to find out either.
    for path in ["/no.such.Service/Method", "/grpc.health.v1.Health/Checks", "/grpc.health.v1.Health", "/"]:
        assert outcome(channel, path)[0] == grpc.StatusCode.UNAUTHENTICATED, path
    health = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service=SERVICE)
    assert health.Check(request, timeout=10).status == health_pb2.HealthCheckResponse.SERVING
    assert next(health.Watch(request, timeout=10)).status == health_pb2.HealthCheckResponse.SERVING
    refused = page_value(page(server.metrics_address), 'kvcompress_rejected_requests_total{reason="unauthenticated"}')
    assert refused == 5 * len(methods(stubs)) + 4


def test_reflection_with_one(daemon, token_file):
    from grpc_reflection.v1alpha import reflection_pb2
    server = daemon("--token-file", str(token_file))
    stub = reflection_pb2_grpc.ServerReflectionStub(server.channel())
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = stub.ServerReflectionInfo(iter([request]), metadata=bearer(TOKEN), timeout=10)
    assert SERVICE in {service.name for service in answer.list_services_response.service}


def test_unix_sockets_need_one_too(daemon, stubs, token_file, socket_dir):
    server = daemon("--token-file", str(token_file), "--listen", f"unix:{socket_dir}/s")
    server.address = server.listen[1]
    stub = Client(server, stubs).stub
    with pytest.raises(grpc.RpcError) as error:
        stub.Metrics(stubs.pb.MetricsRequest(), timeout=10)
    assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED
    stub.Metrics(stubs.pb.MetricsRequest(), timeout=10, metadata=bearer(TOKEN))


def test_clients_are_told_apart_by_their_tokens(daemon, stubs, token_file, socket_dir):
    """Also on a unix socket, and however the same token is written."""
    server = daemon("--token-file", str(token_file), "--listen", f"unix:{socket_dir}/s", "--max-streams-per-client", "1")
    for address in server.listen:
        server.address = address
        stub = Client(server, stubs).stub
        feed = Feed()
        call = stub.Compress(feed, timeout=30, metadata=bearer(TOKEN))
        metrics = stubs.pb.MetricsRequest()
        wait_for(lambda stub=stub: stub.Metrics(metrics, metadata=bearer(OTHER)).streams_in_flight == 1, "the stream")
        for value in (f"Bearer {TOKEN}", f"bearer   {TOKEN}", f"BEARER {TOKEN} "):
            assert failure(stub.Compress(iter([]), timeout=10, metadata=[("authorization", value)]))[:2] == (
                grpc.StatusCode.RESOURCE_EXHAUSTED, "the limit of 1 streams of one client is reached")
        assert len(list(stub.Compress(iter([]), timeout=10, metadata=bearer(OTHER)))) == 1
        feed.close()
        assert len(list(call)) == 1


def test_nobody_is_two_clients_at_once(daemon, token_file):
    server = daemon("--token-file", str(token_file))
    for second in (OTHER, TOKEN, "unknown"):
        for metadata in (bearer(TOKEN) + bearer(second), bearer(second) + bearer(TOKEN)):
            assert outcome(server.channel(), f"/{SERVICE}/Compress", metadata=metadata) == (
                grpc.StatusCode.UNAUTHENTICATED, "more than one authorization")


def test_tokens_that_come_and_go(daemon, stubs, token_file):
    server = daemon("--token-file", str(token_file))
    stub = Client(server, stubs).stub

    def passes(token):
        try:
            stub.Metrics(stubs.pb.MetricsRequest(), timeout=10, metadata=bearer(token))
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNAUTHENTICATED
            return False
        return True
    new = "a-third-horse-battery-staple-0003"
    assert passes(TOKEN) and passes(OTHER) and not passes(new)
    token_file.write_text(f"{OTHER}\n{new}\n")
    wait_for(lambda: passes(new), "the new token")
    assert passes(OTHER) and not passes(TOKEN)
    # What is no file of tokens neither lets anybody in nor locks everybody out.
    for broken in ["", "short\n", None]:
        said = server.log().count("token file cannot be read again")
        if broken is None:
            token_file.unlink()
        else:
            token_file.write_text(broken)

        def logged(said=said):
            assert passes(new) and not passes(TOKEN) and not passes("")
            return server.log().count("token file cannot be read again") > said
        wait_for(logged, "a line in the log")
    token_file.write_text(f"{TOKEN}\n")
    wait_for(lambda: passes(TOKEN), "the old token, back again")
    assert not passes(new)


def test_a_file_that_cannot_be_used_ends_the_start(bin_dir, tmp_path):
    path = tmp_path / "tokens"
    for content, why in [(None, f"token file: {path}: no such file or directory"), ("# none\n", "--token-file: no token is in it"),
                         ("secret-0\n", "--token-file: line 1: a token needs at least 16 characters, for example of "
                          "openssl rand -hex 32")]:
        if content is not None:
            path.write_text(content)
        result = subprocess.run([bin_dir / "kv-compressd", "--listen", "127.0.0.1:0", "--metrics-listen", "off",
                                 "--token-file", path], capture_output=True, text=True, timeout=30)
        assert (result.returncode, result.stderr) == (1, f"kv-compressd: {why}\n")


def test_tokens_do_not_leave_the_daemon(daemon, stubs, token_file):
    server = daemon("--token-file", str(token_file), "--log-level", "debug")
    client = Client(server, stubs)
    wrong = "wrong-horse-battery-staple-0009"
    said = []
    for metadata in [bearer(TOKEN), bearer(wrong), [("authorization", wrong)]]:
        for path, streaming in methods(stubs):
            said.append(outcome(server.channel(), path, streaming, metadata)[1])
    said += [page(server.metrics_address), str(client.stub.Metrics(stubs.pb.MetricsRequest(), metadata=bearer(TOKEN)))]
    assert server.stop() == 0
    said.append(server.log())
    assert "call" in server.log() and "text=" in server.log()
    for secret in (TOKEN, OTHER, wrong):
        assert secret not in "\n".join(said)

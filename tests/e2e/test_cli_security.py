"""The command line, and with it the C++ client, against daemons with TLS and tokens."""

import time

import numpy as np
import pytest
from cli_helpers import run, run_ok, start, write_file
from daemon_helpers import wait_for
from tls_helpers import Authority, tls_flags

TOKEN = "correct-horse-battery-staple-0001"


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path, "authority")


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "tokens"
    path.write_text(f"{TOKEN}\n# no other\n")
    return path


def there_and_back(bin_dir, sample, tmp_path, *flags, env=None):
    small, back = tmp_path / "small.safetensors", tmp_path / "back.safetensors"
    run_ok(bin_dir, "-input", sample, "-output", small, "-codec", "lossless", *flags, env=env)
    run_ok(bin_dir, "-decompress", "-input", small, "-output", back, *flags, env=env)
    return back.read_bytes()


def refusal(bin_dir, sample, *flags, env=None):
    done = run(bin_dir, "-input", sample, "-metrics-only", *flags, env=env)
    assert done.returncode != 0 and done.stdout == ""
    return done.stderr


def text_ends(text, end):
    return text.endswith(end + "\n")


def test_tls_to_a_daemon_that_speaks_plaintext(bin_dir, daemon, sample, authority):
    text = refusal(bin_dir, sample, "-server", daemon().address, "-tls-ca", authority.certificate)
    assert text_ends(text, "(does the daemon speak plaintext?)") and text.count("\n") == 1


def test_mutual_tls_and_a_token(bin_dir, daemon, sample, tmp_path, authority, token_file):
    ours = authority.issue("ours")
    server = daemon(*tls_flags(authority.issue("daemon"), authority), "--token-file", str(token_file))
    ca = ["-tls-ca", authority.certificate]
    pair = ["-tls-cert", ours.certificate, "-tls-key", ours.key]
    flags = ["-server", server.address, *ca, *pair, "-token-file", token_file]
    there = there_and_back(bin_dir, sample, tmp_path, *flags)
    assert there == there_and_back(bin_dir, sample, tmp_path)
    name = server.address.replace("127.0.0.1", "localhost")
    run_ok(bin_dir, "-input", sample, "-metrics-only", "-server", name, *flags[2:])
    by_environment = {"KV_COMPRESS_SERVER": server.address, "KV_COMPRESS_TLS_CA": str(authority.certificate),
                      "KV_COMPRESS_TLS_CERT": str(ours.certificate), "KV_COMPRESS_TLS_KEY": str(ours.key),
                      "KV_COMPRESS_TOKEN_FILE": str(token_file)}
    run_ok(bin_dir, "-input", sample, "-metrics-only", env=by_environment)

    stranger = Authority(tmp_path, "stranger")
    for wrong in [flags[:2], [*flags[:2], "-tls"], [*flags[:2], *ca], [*flags[:2], *pair],
                  [*flags[:2], "-tls-ca", stranger.certificate, *pair],
                  [*flags[:4], "-tls-cert", stranger.issue("s").certificate, "-tls-key", tmp_path / "s.key"],
                  [*flags, "-tls-server-name", "example.org"]]:
        text = refusal(bin_dir, sample, *wrong)
        assert f"connect to {server.address}: " in text and text.count("\n") == 1
    assert text_ends(refusal(bin_dir, sample, *flags[:2]), "(does the daemon speak TLS?)")
    assert text_ends(refusal(bin_dir, sample, *flags[:2], *ca), "(does the daemon want a certificate?)")
    assert text_ends(refusal(bin_dir, sample, *flags[:-2]), "Bearer TOKEN\"; the flag -token-file FILE does")
    token_file.write_text("wrong-horse-battery-staple-0009\n")
    text = refusal(bin_dir, sample, *flags, env={"KV_COMPRESS_TOKEN_FILE": "/nowhere"})
    assert "the token is not one that this daemon knows" in text and "wrong-horse" not in text


@pytest.mark.parametrize(("days", "ca", "flags", "said"), [
    ((-2, -1), "ours", [], "the daemon's certificate has expired"),
    ((1, 2), "ours", [], "the daemon's certificate is not valid yet"),
    ((-1, 1), "stranger", [], "the daemon's certificate is of an unknown authority; -tls-ca FILE names the authorities to trust"),
    ((-1, 1), "", ["-tls"], "the daemon's certificate is of an unknown authority; -tls-ca FILE names the authorities to trust"),
    ((-1, 1), "ours", ["-tls-server-name", "example.org"],
     'the daemon\'s certificate is for another host than "example.org"'),
])
def test_a_certificate_that_no_retry_makes_good_is_named(bin_dir, daemon, sample, tmp_path, days, ca, flags, said):
    ours = Authority(tmp_path, "ours")
    authorities = {"ours": ours, "stranger": Authority(tmp_path, "stranger")}
    server = daemon(*tls_flags(ours.issue("daemon", days)))
    if ca:
        flags = [*flags, "-tls-ca", authorities[ca].certificate]
    for address in (server.address, server.address.replace("127.0.0.1", "dns:///localhost")):
        text = refusal(bin_dir, sample, "-server", address, *flags, "-verbose")
        assert text.splitlines()[-1] == f"Error: connect to {address}: {said}"
        assert "retrying" not in text


def test_a_daemon_that_comes_back_with_an_expired_certificate_is_not_waited_for(bin_dir, daemon, tmp_path, authority):
    values = np.random.default_rng(1).standard_normal((64, 8, 512, 64)).astype(np.float16)
    path = write_file(tmp_path / "in", {f"t{i}": values for i in range(3)})
    first = daemon("--threads", "1", *tls_flags(authority.issue("first")))
    client = start(bin_dir, "-input", path, "-output", tmp_path / "out", "-codec", "raw|zstd(level=6)", "-server",
                   first.address, "-tls-ca", authority.certificate, text=True)
    wait_for(lambda: any(item.stat().st_size > 0 for item in tmp_path.glob(".kvcompress-*.tmp")), "output begins")
    first.process.kill()
    first.wait()
    daemon("--listen", first.address, *tls_flags(authority.issue("late", (-2, -1))))
    _, stderr = client.communicate(timeout=100)
    assert (client.returncode, stderr) == (1, f"Error: connect to {first.address}: the daemon's certificate has expired\n")


def test_a_host_that_does_not_exist_is_named_at_once(bin_dir, sample):
    began = time.monotonic()
    text = refusal(bin_dir, sample, "-server", "no.such.host.invalid:50051")
    if "Domain name not found" in text or "there is no host" in text:  # else nobody answers for names here
        assert text == 'Error: connect to no.such.host.invalid:50051: there is no host "no.such.host.invalid"\n'
    assert time.monotonic() - began < 6


@pytest.mark.parametrize(("address", "said"), [
    ("127.0.0.1:0", 'the port must be a number from 1 to 65535, not "0"'),
    ("127.0.0.1:99999", 'the port must be a number from 1 to 65535, not "99999"'),
    ("unix:/" + "a" * 107, "the path of a unix socket has at most 107 bytes, and this one has 108"),
])
def test_an_address_that_cannot_be_is_refused_at_once(bin_dir, sample, address, said):
    began = time.monotonic()
    for env, flags in (({"KV_COMPRESS_SERVER": address}, []), ({}, ["-server", address])):
        text = refusal(bin_dir, sample, *flags, env=env)
        assert text == f'Error: "{address}" is not the address of a daemon: {said}\n'
    assert time.monotonic() - began < 4  # retries take 11 s


def test_a_name_in_place_of_the_host(bin_dir, daemon, sample, authority):
    server = daemon(*tls_flags(authority.issue("daemon")), "--listen", "127.0.0.2:0")
    flags = ["-server", server.listen[1], "-tls-ca", authority.certificate]
    assert "connect to" in refusal(bin_dir, sample, *flags)  # the certificate is for 127.0.0.1 and localhost
    run_ok(bin_dir, "-input", sample, "-metrics-only", *flags, "-tls-server-name", "localhost")
    both = ["-server", ",".join(server.listen), *flags[2:], "-tls-server-name", "localhost"]
    run_ok(bin_dir, "-input", sample, "-metrics-only", *both)


def test_tokens_without_tls(bin_dir, daemon, sample, tmp_path, token_file, socket_dir):
    server = daemon("--token-file", str(token_file), "--listen", f"unix:{socket_dir}/s", "--shared-memory", "kvc-")
    for address in server.listen:
        there_and_back(bin_dir, sample, tmp_path, "-server", address, "-token-file", token_file)
        assert "a token is needed" in refusal(bin_dir, sample, "-server", address)
    # TLS settings for the network do not stand in the way of the socket.
    run_ok(bin_dir, "-input", sample, "-metrics-only", "-server", server.listen[1], "-token-file", token_file, "-tls")
    for away in ["example.invalid:1", "10.0.0.1:1", "dns:///localhost:1"]:
        text = refusal(bin_dir, sample, "-server", away, "-token-file", token_file)
        assert f'the token would go to "{away}" in plaintext' in text and TOKEN not in text


def test_faults_of_the_flags(bin_dir, sample, tmp_path, authority):
    ours, other = authority.issue("ours"), authority.issue("other")
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("\n")
    server = ["-server", "127.0.0.1:1"]
    for flags, said in [
        (["-tls-ca", "x"], "-tls-ca needs -server"),
        (["-tls"], "-tls needs -server"),
        (["-token-file", "x"], "-token-file needs -server"),
        ([*server, "-tls-cert", ours.certificate], "-tls-cert and -tls-key go together"),
        ([*server, "-tls-ca", "/nowhere"], "read -tls-ca: open /nowhere: no such file or directory"),
        ([*server, "-tls-ca", nonsense], f"read -tls-ca: {nonsense}: no certificate in PEM is in it"),
        ([*server, "-tls-cert", nonsense, "-tls-key", ours.key], f"{nonsense}: no certificate in PEM is in it"),
        ([*server, "-tls-cert", ours.certificate, "-tls-key", ours.certificate],
         f"read -tls-key: {ours.certificate}: no private key in PEM, unencrypted, is in it"),
        ([*server, "-tls-cert", ours.certificate, "-tls-key", other.key],
         f"read -tls-key: {other.key}: the key is not that of the first certificate of -tls-cert"),
        ([*server, "-token-file", nonsense], f"read -token-file: {nonsense}: its first line is no token"),
        ([*server, "-token-file", "/nowhere"], "read -token-file: open /nowhere: no such file or directory"),
    ]:
        assert said in refusal(bin_dir, sample, *flags), flags
    # Of a run without a server the environment says nothing.
    run_ok(bin_dir, "-input", sample, "-metrics-only", env={"KV_COMPRESS_TOKEN_FILE": "/nowhere"})

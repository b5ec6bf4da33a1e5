"""Certificates of authorities that live for a test, and channels with them."""

import datetime
import ipaddress
import os
import socket
import ssl

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

PEM = serialization.Encoding.PEM


def _pem(key):
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _certificate(subject, public_key, issuer, signer, days, ca):
    now = datetime.datetime.now(datetime.timezone.utc)
    first, last = days
    name, issuer = (x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)]) for text in (subject, issuer))
    names = [x509.DNSName(subject), x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    return (
        x509.CertificateBuilder().subject_name(name).issuer_name(issuer).public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=first)).not_valid_after(now + datetime.timedelta(days=last))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .sign(signer, hashes.SHA256())
    )


class Pair:
    """A certificate and its key, in files, which can be put in the place of another's."""

    def __init__(self, folder, name, certificate, key):
        self.certificate = folder / f"{name}.crt"
        self.key = folder / f"{name}.key"
        self.serial = certificate.serial_number
        self.expires = certificate.not_valid_after_utc.timestamp()
        self.certificate.write_bytes(certificate.public_bytes(PEM))
        self.key.write_bytes(_pem(key))

    def replace(self, other):
        for ours, theirs in ((self.certificate, other.certificate), (self.key, other.key)):
            os.replace(theirs, ours)
        self.serial, self.expires = other.serial, other.expires


class Authority:
    def __init__(self, folder, name):
        self._folder, self._name = folder, name
        self._key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(name, self._key.public_key(), name, self._key, (-3, 3), True)
        self.certificate = Pair(folder, name, certificate, self._key).certificate

    def issue(self, name, days=(-1, 1), key=None):
        """For its name, localhost and 127.0.0.1; valid from and to so many days from now."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(name, key.public_key(), self._name, self._key, days, False)
        return Pair(self._folder, name, certificate, key)


def credentials(authority, pair=None):
    """Of a client that believes the authority, and shows a pair."""
    shown = (None, None) if pair is None else (pair.key.read_bytes(), pair.certificate.read_bytes())
    return grpc.ssl_channel_credentials(authority.certificate.read_bytes(), *shown)


def tls_flags(pair, client_ca=None):
    flags = ["--tls-cert", str(pair.certificate), "--tls-key", str(pair.key)]
    return flags if client_ca is None else [*flags, "--tls-client-ca", str(client_ca.certificate)]


def refuses(address, authority, pair):
    """Whether the daemon closes the connection of a client that shows a pair, or none; else it says something."""
    context = ssl.create_default_context(cafile=str(authority.certificate))
    context.set_alpn_protocols(["h2"])
    if pair is not None:
        context.load_cert_chain(pair.certificate, pair.key)
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=10) as plain:
        try:
            with context.wrap_socket(plain, server_hostname="localhost") as wrapped:
                return not wrapped.recv(65536)  # TLS 1.3 lets the client's side of the handshake end first
        except ssl.SSLError:
            return True


def handshake(address, authority, oldest=None, newest=None):
    """(version, serial number of the server's certificate) of a new connection with Python's own TLS; OSError without."""
    context = ssl.create_default_context(cafile=str(authority.certificate))
    context.set_ciphers("DEFAULT@SECLEVEL=0")  # or this side would refuse old versions by itself
    context.set_alpn_protocols(["h2"])
    context.minimum_version = oldest or ssl.TLSVersion.TLSv1_2
    if newest is not None:
        context.maximum_version = newest
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=10) as plain:
        with context.wrap_socket(plain, server_hostname="localhost") as wrapped:
            shown = x509.load_der_x509_certificate(wrapped.getpeercert(True))
            return wrapped.version(), shown.serial_number

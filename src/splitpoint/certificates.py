"""Keys for a lab: an authority of one's own, a certificate for the server, one for devices, and a token.

For a few machines of one's own. Whoever has the folder can be the server, and any device.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from splitpoint.errors import MissingExtraError, StorageError, UsageError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

#: Clocks of small devices are wrong: certificates hold from a day before they are made.
_EARLY = timedelta(days=1)
_LABEL = re.compile(r"(\*|[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)", re.ASCII | re.IGNORECASE)
_TOKEN_BYTES = 32


@dataclass(frozen=True)
class Keys:
    """The files that were made. Of these a device needs `ca` and `token`, or `ca`, `client` and `client_key`."""

    ca: Path
    ca_key: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path
    token: Path


def make(folder: Path, hosts: Sequence[str], *, now: datetime, days: float = 365) -> Keys:
    """Writes them into `folder`, for a server that is called by any of `hosts` (names, wildcards, IP addresses).

    What is secret is for the owner alone (mode 600). UsageError if something is there already, or a host is none;
    MissingExtraError without the package `cryptography`; StorageError.
    """
    if not hosts:
        raise UsageError("a server's certificate needs at least one name: --host NAME")
    names = [_general_name(host) for host in dict.fromkeys(hosts)]
    files = Keys(
        **{
            field: folder / name
            for field, name in (
                ("ca", "ca.pem"),
                ("ca_key", "ca.key"),
                ("server", "server.pem"),
                ("server_key", "server.key"),
                ("client", "client.pem"),
                ("client_key", "client.key"),
                ("token", "token"),
            )
        }
    )
    there = [path for path in vars(files).values() if os.path.lexists(path)]
    if there:
        raise UsageError(f"{there[0]} is there already, and may be in use: choose another folder, or remove it")
    maker = _Maker(now - _EARLY, now + timedelta(days=days))
    contents = maker.all(names)
    written: list[Path] = []
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for field, path in vars(files).items():
            _write(path, contents[field], written, secret=field.endswith("_key") or field == "token")
    except BaseException as exc:
        for path in written:  # half a set is of no use, and would stand in the way of the next try
            with suppress(OSError):
                path.unlink()
        if isinstance(exc, OSError):
            raise StorageError(f"cannot write {exc.filename or folder}: {exc.strerror or exc}") from exc
        raise
    return files


def _write(path: Path, data: bytes, written: list[Path], *, secret: bool) -> None:
    """Never over a file, and never readable for a moment by whom it is not for. What is there then is in `written`."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if secret else 0o644)
    written.append(path)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def _general_name(host: str) -> x509.GeneralName:
    try:
        from cryptography import x509
    except ImportError as exc:
        raise MissingExtraError("cryptography", "tls", "make keys") from exc
    try:
        return x509.IPAddress(ip_address(host.strip("[]")))
    except ValueError:
        pass
    labels = host.removesuffix(".").split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels) or "*" in labels[1:]:
        raise UsageError(f"{host!r} is neither a host's name nor an IP address: --host server.lab, --host 192.168.1.7")
    return x509.DNSName(host.removesuffix("."))


class _Maker:
    """Makes certificates that hold from `begin` to `end`. Elliptic curves: quick for a small device, and for many."""

    def __init__(self, begin: datetime, end: datetime) -> None:
        self._begin, self._end = begin, end

    def all(self, names: Sequence[x509.GeneralName]) -> dict[str, bytes]:
        """The files' contents, by the names of `Keys`."""
        from cryptography.x509 import SubjectAlternativeName
        from cryptography.x509.oid import ExtendedKeyUsageOID

        ca_key, server_key, client_key = self._key(), self._key(), self._key()
        ca = self._signed("splitpoint lab authority", ca_key, None, ca_key, [])
        server = self._signed(
            "splitpoint server",
            server_key,
            ca,
            ca_key,
            [(SubjectAlternativeName(names), False)],
            ExtendedKeyUsageOID.SERVER_AUTH,
        )
        client = self._signed("splitpoint device", client_key, ca, ca_key, [], ExtendedKeyUsageOID.CLIENT_AUTH)
        return {
            "ca": _pem(ca),
            "ca_key": _private_pem(ca_key),
            "server": _pem(server),
            "server_key": _private_pem(server_key),
            "client": _pem(client),
            "client_key": _private_pem(client_key),
            "token": secrets.token_urlsafe(_TOKEN_BYTES).encode() + b"\n",
        }

    @staticmethod
    def _key() -> EllipticCurvePrivateKey:
        from cryptography.hazmat.primitives.asymmetric import ec

        return ec.generate_private_key(ec.SECP256R1())

    def _signed(
        self,
        name: str,
        key: EllipticCurvePrivateKey,
        issuer: x509.Certificate | None,
        issuer_key: EllipticCurvePrivateKey,
        extensions: Sequence[tuple[x509.ExtensionType, bool]],
        purpose: x509.ObjectIdentifier | None = None,
    ) -> x509.Certificate:
        """A certificate; without an issuer, an authority's own. With all that strict verifiers ask for (RFC 5280)."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes

        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        is_ca = issuer is None
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if issuer is None else issuer.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._begin)
            .not_valid_after(self._end)
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=0 if is_ca else None), critical=True)
            .add_extension(_usage(is_ca), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        )
        if purpose is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(issuer_key, hashes.SHA256())


def _usage(is_ca: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not is_ca,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    pem: bytes = certificate.public_bytes(Encoding.PEM)
    return pem


def _private_pem(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    pem: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem

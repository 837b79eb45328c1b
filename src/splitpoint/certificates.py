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
#: As the fields of `Keys`.
_FILES = ("ca.pem", "ca.key", "server.pem", "server.key", "client.pem", "client.key", "token")
_CALLED = {"ca": "splitpoint lab authority", "server": "splitpoint server", "client": "splitpoint device"}


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
    files = Keys(*(folder / name for name in _FILES))
    there = [path for path in vars(files).values() if os.path.lexists(path)]
    if there:
        raise UsageError(f"{there[0]} is there already, and may be in use: choose another folder, or remove it")
    contents = _contents(names, now - _EARLY, now + timedelta(days=days))
    written: list[Path] = []
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for field, path in vars(files).items():
            secret = field.endswith("_key") or field == "token"
            # Never over a file, and never readable for a moment by whom it is not for.
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if secret else 0o644)
            written.append(path)
            with os.fdopen(descriptor, "wb") as file:
                file.write(contents[field])
    except BaseException as exc:
        for path in written:  # half a set is of no use, and would stand in the way of the next try
            with suppress(OSError):
                path.unlink()
        if isinstance(exc, OSError):
            raise StorageError(f"cannot write {exc.filename or folder}: {exc.strerror or exc}") from exc
        raise
    return files


def _general_name(host: str) -> x509.GeneralName:
    try:
        from cryptography import x509
    except ImportError as exc:
        raise MissingExtraError("cryptography", "tls", "make keys") from exc
    with suppress(ValueError):
        return x509.IPAddress(ip_address(host.strip("[]")))
    labels = host.removesuffix(".").split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels) or "*" in labels[1:]:
        raise UsageError(f"{host!r} is neither a host's name nor an IP address: --host server.lab, --host 192.168.1.7")
    return x509.DNSName(host.removesuffix("."))


def _contents(names: Sequence[x509.GeneralName], begin: datetime, end: datetime) -> dict[str, bytes]:
    """The files' contents, by the names of `Keys`. Elliptic curves: quick for a small device, and for many."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import ExtendedKeyUsageOID

    extensions: dict[str, list[x509.ExtensionType]] = {
        "ca": [],
        "server": [x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), x509.SubjectAlternativeName(names)],
        "client": [x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])],
    }
    keys = {who: ec.generate_private_key(ec.SECP256R1()) for who in extensions}
    contents = {"token": secrets.token_urlsafe(_TOKEN_BYTES).encode() + b"\n"}
    for who, key in keys.items():
        certificate = _signed(who, key, keys["ca"], extensions[who], begin, end)
        contents[who] = certificate.public_bytes(Encoding.PEM)
        contents[f"{who}_key"] = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return contents


def _signed(
    who: str,
    key: EllipticCurvePrivateKey,
    ca_key: EllipticCurvePrivateKey,
    extensions: Sequence[x509.ExtensionType],
    begin: datetime,
    end: datetime,
) -> x509.Certificate:
    """A certificate that holds from `begin` to `end`, with all that strict verifiers ask for (RFC 5280)."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    subject, issuer = (x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, _CALLED[w])]) for w in (who, "ca"))
    is_ca = who == "ca"
    usage = x509.KeyUsage(
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
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=0 if is_ca else None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(ca_key, hashes.SHA256())

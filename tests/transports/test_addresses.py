"""Addresses as people write them and as sockets have them."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from serving import nothing_leaks

from splitpoint.errors import UsageError
from splitpoint.transports.addresses import format_address, is_loopback, parse_address, parse_host


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    with nothing_leaks():
        yield


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("host", ("host", 3277)),
        ("host:1", ("host", 1)),
        (":4000", ("127.0.0.1", 4000)),
        ("[::1]", ("::1", 3277)),
        ("[fe80::1]:80", ("fe80::1", 80)),
        ("::1", ("::1", 3277)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["host:0", "host:65536", "host:x", "[::1", "[::1]x", "host:-1"])
def test_what_is_no_address_is_said(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text)


@pytest.mark.parametrize("host", ["127.0.0.1:5003", "[::1]:5002", "localhost:1", "", "  ", "[::1"])
def test_a_host_with_a_port_is_said(host: str) -> None:
    with pytest.raises(UsageError, match=r"has a port in it|is empty"):
        parse_host(host)


@pytest.mark.parametrize(
    ("host", "here"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("::ffff:127.0.0.2", True), ("::1%lo", True),
     ("::ffff:10.0.0.1", False), ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("fe80::1%lo", False)],
)  # fmt: skip
def test_what_is_this_machine_itself(host: str, here: bool) -> None:
    assert is_loopback(host) == here


def test_a_link_local_address_has_its_interface() -> None:
    index, name = socket.if_nameindex()[0]
    assert format_address(("fe80::1", 80, 0, index)) == f"[fe80::1%{name}]:80"
    assert format_address(("fe80::1", 80, 0, 0)) == "[fe80::1]:80"

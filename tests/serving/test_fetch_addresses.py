"""Addresses that are refused before anything is sent: not public, read in two ways, or of other services."""

from __future__ import annotations

import asyncio

import pytest

from qwen2_audio.errors import AudioError
from qwen2_audio.serving.fetch import Fetcher, is_public, resolve
from tests.serving.fetching import refused, settings
from tests.serving.loopback import PUBLIC, Names, ToLoopback

PRIVATE = [
    *["127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"],
    *["192.0.2.1", "198.18.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "192.88.99.1"],
    *["::", "::1", "fe80::1", "fc00::1", "fd00::1", "fec0::1", "ff02::1", "2001:db8::1", "3fff::1"],
    *["::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe"],
    *["64:ff9b:1::808:808", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:1::1", "fe80::1%lo", "2606::5efe:7f00:1"],
    "not an address",
]
ALLOWED = ["93.184.216.34", "8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ALLOWED)
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", [a for a in PRIVATE if "%" not in a and " " not in a])
def test_private_addresses_in_urls_and_behind_names_are_refused(address: str) -> None:
    host = f"[{address}]" if ":" in address else address
    message = refused(f"http://{host}/latest/meta-data", "not on the public internet")
    refused(f"https://{host}:8443/", "not on the public internet")
    message = refused("http://name.test/", "not on the public internet", names=Names(name_test=[[address]]))
    assert address not in message, "the inside of a network is nobody's business"


@pytest.mark.parametrize(
    "host", ["0", "127.1", "2130706433", "0x7f.1", "0x7f000001", "0177.0.0.1", "0x7f.0.0.1", "127.0.1", "1.1.1.1.1"]
)
def test_numbers_that_resolvers_take_for_addresses(host: str) -> None:
    refused(f"http://{host}/", "number in an unusual form")


@pytest.mark.parametrize("host", ["localhost", "localhost.", "ip6-localhost"])
def test_names_of_this_machine(host: str) -> None:
    async def run() -> None:
        fetcher = Fetcher(settings(), resolve)
        with pytest.raises(AudioError, match=r"public internet|is no address|does not answer"):
            await fetcher.fetch(f"http://{host}/")
        await fetcher.close()

    asyncio.run(run())


@pytest.mark.parametrize("name", ["127.0.0.1.nip.test", "customer.7f000001.test", "metadata.test"])
def test_public_names_of_private_addresses(name: str) -> None:
    names = Names()
    names.known[name] = [["127.0.0.1"]]
    refused(f"http://{name}/", "not on the public internet", names=names)


def test_one_private_address_among_public_ones_is_enough() -> None:
    refused("http://mixed.test/", "public internet", names=Names(mixed_test=[[PUBLIC, "10.0.0.1"]]))
    refused("http://none.test/", "public internet", names=Names(none_test=[[]]))


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://media.test/x",
        "gopher://127.0.0.1:6379/_x",
        "//media.test/x",
        "media.test/x",
        "http:/media.test/x",
        "http:///x",
        "http://",
        "",
        "http://a\\@b/",
        "http://media.test\\@127.0.0.1/",
        "http://media.test#@127.0.0.1\\",
        "http://user:pass@media.test/x",
        "http://user@media.test/x",
        "http://media.test@127.0.0.1/",
        "http://media.test:80@127.0.0.1/",
        "http://media.test:abc/",
        "http://media.test:-1/",
        "http://media.test:99999/",
        "http://media.test:/x",
        "http://media test/",
        "http://media.test/a b",
        "http://media.test/\r\nHost: evil",
        "http://media.test\t/",
        "http://media%2etest/",
        "http://127.0.0.1%2f.test/",
        "http://[::1/",
        "http://[::1%25lo]/",
        "http://[fe80::1%eth0]/",
        "http://①②⑦.⓪.⓪.①/",
        "http://１２７.0.0.1/",
        "http://localhosｔ/",
        "http://bücher.test/",
        "http://media。test/",
        "http://-media.test/",
        "http://.test/",
        "http://media.test;127.0.0.1/",
        "http://media.test,127.0.0.1/",
        "http://" + "a" * 5000,
    ],
)
def test_addresses_that_can_be_read_in_two_ways_or_are_none(url: str) -> None:
    transport, names = ToLoopback(9), Names()

    async def run() -> None:
        fetcher = Fetcher(settings(), names, transport)
        with pytest.raises(AudioError, match=r"no address of a recording|two ways|names port"):
            await fetcher.fetch(url)
        await fetcher.close()

    asyncio.run(run())
    assert (transport.sent, names.asked) == ([], [])


@pytest.mark.parametrize("number", [1, 22, 25, 81, 444, 1023])
def test_ports_of_other_services(number: int) -> None:
    refused(f"http://media.test:{number}/", f"port {number}")

"""What a host decides, and what it reads: values in, values out."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vswitchd.errors import VsError
from vswitchd.host import hosttab, memory
from vswitchd.host.decide import (
    MOST_SLOTS,
    Attachment,
    Link,
    established,
    missing,
    printed,
    slots_for,
)
from vswitchd.host.handshake import Export, block_size
from vswitchd.host.netlink import nbdcmd
from vswitchd.host.paths import address_of

ADDRESSES = st.lists(st.sampled_from([f"10.0.0.{n}:10809" for n in range(9)]), unique=True)
VOLUMES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)


@given(ADDRESSES, ADDRESSES, st.integers(0, 12))
def test_missing_paths_are_served_not_connected_and_have_room(
    served: list[str], connected: list[str], slots: int
) -> None:
    found = missing(served, connected, slots)
    assert set(found) <= set(served) - set(connected)
    assert len(set(found)) == len(found)
    assert len(found) + len(connected) <= max(slots, len(connected))
    left = set(served) - set(connected) - set(found)
    assert not left or len(found) + len(connected) >= slots


@given(ADDRESSES)
def test_a_new_device_has_room_for_all_paths_and_some_more(served: list[str]) -> None:
    assert min(len(served) + 1, MOST_SLOTS) <= slots_for(served) <= MOST_SLOTS


def proc_line(local: tuple[bytes, int], remote: tuple[bytes, int], state: int) -> str:
    """As the kernel prints it (net/ipv4/tcp_ipv4.c, get_tcp4_sock): each word of an address as a
    number of this machine's byte order."""

    def end(raw: bytes, port: int) -> str:
        words = [raw[at : at + 4] for at in range(0, len(raw), 4)]
        return "".join(f"{struct.unpack('=I', w)[0]:08X}" for w in words) + f":{port:04X}"

    return f"  12: {end(*local)} {end(*remote)} {state:02X} 00000000:00000000 02:00 0 0 0 99 1"


ENDS = st.tuples(
    st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)),
    st.integers(0, 65535),
)


@given(st.lists(st.tuples(ENDS, ENDS, st.integers(1, 11)), max_size=8))
def test_what_stands_is_read_from_the_kernels_tables(
    rows: list[tuple[tuple[bytes, int], tuple[bytes, int], int]],
) -> None:
    table = "\n".join(["  sl  local_address ...", *(proc_line(*row) for row in rows)])
    wanted = {(printed(*a), printed(*b)) for a, b, state in rows if state == 1}
    assert established([table, ""]) == wanted


@given(st.ip_addresses(v=4), st.integers(0, 65535))
def test_ipv4_within_ipv6_is_the_same_address(ip: ipaddress.IPv4Address, port: int) -> None:
    mapped = ipaddress.IPv6Address(f"::ffff:{ip}")
    assert printed(mapped.packed, port) == printed(ip.packed, port) == f"{ip}:{port}"


def test_this_machines_own_tables_are_understood() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
        ends = [f"{host}:{port}" for host, port in (near.getsockname(), near.getpeername())]
        tables = [Path("/proc/net/tcp").read_text()]
        assert tuple(ends) in established(tables)
        near.close()
        far.close()


@given(st.dictionaries(VOLUMES, st.none() | st.integers(0, 99)), st.data())
def test_an_edited_hosttab_says_what_was_asked_and_keeps_the_rest(
    wanted: dict[str, int | None], data: st.DataObject
) -> None:
    indexes = [index for index in wanted.values() if index is not None]
    if len(set(indexes)) < len(indexes):
        with pytest.raises(VsError, match="the same device"):
            hosttab.parse(hosttab.edited("", dict(wanted)))
        return
    text = hosttab.edited("# mine\n\nother  /dev/nbd100  # kept\n", dict(wanted))
    assert text.startswith("# mine\n\n")
    wanted.setdefault("other", 100)
    assert hosttab.parse(text) == {**wanted, "other": hosttab.parse(text)["other"]}
    gone = data.draw(st.sampled_from(sorted(wanted)))
    left = hosttab.parse(hosttab.edited(text, {gone: False}))
    assert gone not in left
    assert set(left) == set(wanted) - {gone}


@pytest.mark.parametrize(
    "line", ["a /dev/sda", "a /dev/nbd0 x", "a\na", "a /dev/nbd1\nb /dev/nbd1", "a nbd0"]
)
def test_a_hosttab_that_makes_no_sense_is_refused_by_line(line: str) -> None:
    with pytest.raises(VsError, match="hosttab") as error:
        hosttab.parse(line)
    assert error.value.code == "VS1080"


LINKS = st.builds(Link, *[st.text("0123456789.:[]abcdef", max_size=30)] * 3)
ATTACHMENTS = st.builds(
    Attachment,
    VOLUMES,
    st.uuids().map(str),
    st.integers(0, 99),
    st.integers(1, 16),
    ADDRESSES.map(tuple),
    st.lists(LINKS, max_size=4).map(tuple),
)


@given(st.lists(ATTACHMENTS, unique_by=lambda one: one.volume))
def test_what_is_remembered_is_what_was(attachments: list[Attachment]) -> None:
    wanted = {one.volume: one for one in attachments}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "attachments.json"
        assert memory.load(path) == {}
        memory.save(path, wanted)
        assert memory.load(path) == wanted
        path.write_text(path.read_text()[:-2])
        with pytest.raises(VsError, match="move it away"):
            memory.load(path)


@pytest.mark.parametrize(("minimum", "wanted"), [(1, 512), (512, 512), (4096, 4096), (1 << 20, 0)])
def test_the_block_size_is_one_that_the_kernel_takes(minimum: int, wanted: int) -> None:
    assert block_size(Export(1 << 20, 0, minimum)) == (wanted or os.sysconf("SC_PAGE_SIZE"))


@pytest.mark.parametrize("uri", ["nbd+unix:///v?socket=/x", "nbd://host/v", "http://h:1/v"])
def test_only_tcp_can_be_attached(uri: str) -> None:
    with pytest.raises(VsError) as error:
        address_of(uri)
    assert error.value.code == "VS1081"
    assert address_of("nbd://[::1]:10809/v") == "[::1]:10809"


def test_a_netlink_message_is_what_the_kernels_policy_says() -> None:
    """Against the layout of uapi/linux/nbd-netlink.h, written out by hand."""
    message = nbdcmd()
    message["cmd"], message["version"] = 1, 1
    message["header"]["type"] = 42
    message["attrs"] = [
        ["NBD_ATTR_INDEX", 7],
        ["NBD_ATTR_SIZE_BYTES", 1 << 40],
        ["NBD_ATTR_SOCKETS", {"attrs": [["NBD_SOCK_ITEM", {"attrs": [["NBD_SOCK_FD", 5]]}]]}],
        ["NBD_ATTR_BACKEND_IDENTIFIER", "abc"],
    ]
    message.encode()
    nested = 0x8000
    wanted = struct.pack("=BBH", 1, 1, 0)
    wanted += struct.pack("=HHI", 8, 1, 7)
    wanted += struct.pack("=HHQ", 12, 2, 1 << 40)
    wanted += struct.pack("=HH", 16, 7 | nested) + struct.pack("=HH", 12, 1 | nested)
    wanted += struct.pack("=HHI", 8, 1, 5)
    wanted += struct.pack("=HH", 8, 10) + b"abc\0"
    assert bytes(message.data)[16:] == wanted

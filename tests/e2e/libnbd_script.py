"""Run by the system's Python, which has libnbd's bindings: exits 0 if the export does right."""

import sys

import nbd

KIB = 1024


def main(uri: str) -> None:
    """Writes, reads, zeroes, trims, asks for extents; every answer is checked."""
    handle = nbd.NBD()
    handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    handle.add_meta_context("vswitch:health")
    handle.connect_uri(uri)
    assert handle.can_flush() and handle.can_fua() and handle.can_trim() and handle.can_zero()
    assert handle.can_multi_conn() and handle.can_cache() and not handle.is_read_only()
    assert handle.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    assert handle.can_meta_context("vswitch:health")

    data = bytes(range(256)) * 512
    handle.pwrite(data, 64 * KIB, nbd.CMD_FLAG_FUA)
    assert handle.pread(len(data), 64 * KIB) == data
    assert handle.pread(100, 64 * KIB + 50) == data[50:150]
    handle.zero(64 * KIB, 64 * KIB)
    assert handle.pread(128 * KIB, 64 * KIB) == bytes(64 * KIB) + data[64 * KIB :]
    handle.zero(64 * KIB, 128 * KIB, nbd.CMD_FLAG_NO_HOLE)
    handle.trim(64 * KIB, 64 * KIB)
    handle.cache(64 * KIB, 0)
    handle.flush()

    seen: dict[str, int] = {}

    def extent(context: str, offset: int, entries: list[int], error: object) -> int:
        seen[context] = seen.get(context, 0) + sum(entries[::2])
        return 0

    handle.block_status(256 * KIB, 0, extent)
    assert seen["base:allocation"] >= 256 * KIB, seen
    assert seen["vswitch:health"] >= 256 * KIB, seen

    chunks = []
    handle.pread_structured(
        64 * KIB, 96 * KIB, lambda buf, offset, status, error: chunks.append((offset, status))
    )
    assert chunks

    # Many at once over one connection, answered in any order.
    cookies = [
        handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([n]) * 4096), n * 4096)
        for n in range(64)
    ]
    while cookies:
        handle.poll(-1)
        cookies = [c for c in cookies if not handle.aio_command_completed(c)]
    assert all(handle.pread(4096, n * 4096) == bytes([n]) * 4096 for n in range(64))
    handle.shutdown()


main(sys.argv[1])

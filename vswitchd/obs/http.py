"""/metrics, /livez and /readyz on one small HTTP server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from vswitchd.errors import Kind, VsError

#: Seconds and bytes that a client may take for its request.
PATIENCE = 5.0
MAX_REQUEST = 8192


def split_address(address: str) -> tuple[str, int]:
    """("host", port) of "host:port"; VsError if it is not one."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise VsError("VS1041", Kind.INVALID, f"{address!r} is not an address; say HOST:PORT")
    return host.strip("[]"), int(port)


class Web:
    """The server. `ready` says whether /readyz answers 200."""

    def __init__(self, registry: CollectorRegistry, ready: Callable[[], bool]) -> None:
        self._registry = registry
        self._ready = ready
        self._server: asyncio.Server | None = None

    async def start(self, address: str) -> str:
        """Listens; returns the bound address."""
        host, port = split_address(address)
        try:
            self._server = await asyncio.start_server(self._serve, host, port)
        except OSError as error:
            raise VsError(
                "VS3030",
                Kind.PRECONDITION,
                f"can't listen at {address} for metrics: {error.strerror}; choose another address",
            ) from None
        bound = self._server.sockets[0].getsockname()
        return f"{bound[0]}:{bound[1]}"

    async def stop(self) -> None:
        """Listens no more."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                head = await reader.readuntil(b"\r\n\r\n")
            parts = head.split(b" ", 2)
            path = parts[1].partition(b"?")[0] if len(parts) == 3 and parts[0] == b"GET" else b""
            status, kind, body = await self._answer(path)
            writer.write(
                f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
                "Connection: close\r\n\r\n".encode()
                + body
            )
            async with asyncio.timeout(PATIENCE):
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            pass
        finally:
            writer.close()

    async def _answer(self, path: bytes) -> tuple[str, str, bytes]:
        plain = "text/plain; charset=utf-8"
        match path:
            case b"/metrics":
                # Collecting asks the engine's loops: not in this event loop.
                try:
                    body = await asyncio.to_thread(generate_latest, self._registry)
                except VsError as error:
                    return "500 Internal Server Error", plain, f"{error}\n".encode()
                return "200 OK", CONTENT_TYPE_LATEST, body
            case b"/livez":
                return "200 OK", plain, b"ok\n"
            case b"/readyz" if self._ready():
                return "200 OK", plain, b"ok\n"
            case b"/readyz":
                return "503 Service Unavailable", plain, b"starting\n"
            case _:
                return "404 Not Found", plain, b"there are /metrics, /livez and /readyz\n"

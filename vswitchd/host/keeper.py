"""Keeps one attached volume connected to every SP that serves it, and as large as it is."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from structlog.typing import FilteringBoundLogger

from vswitchd.errors import Kind, VsError
from vswitchd.host import handshake
from vswitchd.host.decide import Attachment, Link, missing
from vswitchd.host.kernel import Kernel, link_of
from vswitchd.host.paths import Controller, Paths

#: Seconds between looks at the connections; a dead link that the kernel tells of is looked at once.
LOOK = 1.0
#: Seconds between questions to the controller.
ASK = 2.0
#: Seconds between tries of one address, the first and the longest.
FIRST_RETRY = 0.2
LAST_RETRY = 2.0


@dataclass
class Address:
    """One address as it is now."""

    connected: bool = False
    error: str = ""
    #: When it may be tried again, and how long to wait after that.
    again: float = 0.0
    pause: float = FIRST_RETRY


@dataclass
class Counters:
    """What has happened to a volume since this process began."""

    reconnections: int = 0
    failures: int = 0


@dataclass
class Kept:
    """What `Keeper` knows, for those who show it."""

    attachment: Attachment
    size: int = 0
    addresses: dict[str, Address] = field(default_factory=dict)
    #: What is wrong and will not mend by itself.
    condition: str = ""
    counters: Counters = field(default_factory=Counters)


class Keeper:
    """One volume's. `save` makes an attachment durable before the kernel is given what it says."""

    def __init__(
        self,
        kept: Kept,
        kernel: Kernel,
        controller: Controller,
        save: Callable[[Attachment], None],
        log: FilteringBoundLogger,
    ) -> None:
        self.kept = kept
        self._kernel = kernel
        self._controller = controller
        self._save = save
        self._log = log.bind(volume=kept.attachment.volume, device=kept.attachment.device)
        #: Set when there is reason to look at once.
        self.wake = asyncio.Event()
        #: Set after the first look.
        self.looked = asyncio.Event()
        self._giving = asyncio.Lock()

    async def run(self) -> None:
        """Until it is cancelled. A controller that does not answer keeps nobody waiting."""
        async with asyncio.TaskGroup() as both:
            both.create_task(self._ask_always())
            both.create_task(self._look_always())

    async def _ask_always(self) -> None:
        while True:
            try:
                await self._ask()
            except VsError as error:
                self._complain(str(error))
            else:
                self._complain("")
            await asyncio.sleep(ASK)

    async def _look_always(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self.wake.clear()
            await self._look()
            self.looked.set()
            try:
                async with asyncio.timeout(self._rest(loop.time())):
                    await self.wake.wait()
            except TimeoutError:
                pass

    def _rest(self, now: float) -> float:
        """Seconds until there is something to do."""
        waits = [a.again - now for a in self.kept.addresses.values() if not a.connected]
        return max(min([LOOK, *waits]), 0.01)

    def _complain(self, text: str) -> None:
        if text and text != self.kept.condition:
            self._log.warning("not_well", error=text)
        self.kept.condition = text

    async def _ask(self) -> None:
        """Learns where the volume is served, and grows the device with it."""
        attachment = self.kept.attachment
        try:
            paths = await self._controller.paths(attachment.volume)
        except VsError as error:
            # Hosts go on with what they know.
            if error.kind in (Kind.UNREACHABLE, Kind.TIMEOUT):
                return
            raise
        attachment = self.kept.attachment
        if paths.volume_id != attachment.volume_id:
            raise VsError(
                "VS2060",
                Kind.EXISTS,
                f"{attachment.volume} is another volume now, made anew under the same name; "
                "detach it, then attach it again",
            )
        if paths.addresses != attachment.addresses:
            self._log.info("paths", addresses=paths.addresses)
            self._keep(replace(attachment, addresses=paths.addresses))
        await self._resize(paths)

    def _keep(self, attachment: Attachment) -> None:
        self._save(attachment)
        self.kept.attachment = attachment

    async def _resize(self, paths: Paths) -> None:
        attachment = self.kept.attachment
        self.kept.size = size = self._kernel.size(attachment.index)
        if not size:
            raise VsError(
                "VS3085",
                Kind.PRECONDITION,
                f"{attachment.device} was disconnected by another tool; detach "
                f"{attachment.volume}, then attach it again",
            )
        if paths.size < size:
            raise VsError(
                "VS6040",
                Kind.UNSAFE,
                f"{attachment.volume} has {paths.size} bytes, {attachment.device} {size}: a "
                "device is never made smaller under its users; detach it first",
            )
        if paths.size > size:
            await asyncio.to_thread(
                self._kernel.resize, attachment.index, attachment.volume_id, paths.size
            )
            self.kept.size = self._kernel.size(attachment.index)
            self._log.info("grown", size=paths.size, before=size)

    async def _look(self) -> None:
        """Finds out which connections stand, and makes those that are missing."""
        standing = await asyncio.to_thread(self._kernel.established)
        attachment = self.kept.attachment
        links = tuple(link for link in attachment.links if (link.local, link.remote) in standing)
        if links != attachment.links:
            gone = [link.address for link in attachment.links if link not in links]
            self._log.warning("paths_lost", addresses=gone, left=len(links))
            attachment = replace(attachment, links=links)
            self._keep(attachment)
        connected = [link.address for link in links]
        known = self.kept.addresses
        self.kept.addresses = {a: known.get(a, Address()) for a in attachment.addresses}
        now = asyncio.get_running_loop().time()
        for name, address in self.kept.addresses.items():
            if address.connected and name not in connected:
                # At once, and then ever more rarely.
                address.again, address.pause = now, FIRST_RETRY
            address.connected = name in connected
        if not self._kernel.size(attachment.index):
            return
        due = [
            name
            for name in missing(attachment.addresses, connected, attachment.slots)
            if self.kept.addresses[name].again <= now
        ]
        await asyncio.gather(*(self._connect(name) for name in due))

    async def _connect(self, name: str) -> None:
        """Makes the connection to an address, and has it take the place of a dead one."""
        attachment, address = self.kept.attachment, self.kept.addresses[name]
        try:
            connection, export = await asyncio.to_thread(
                handshake.connect, name, attachment.volume, self._kernel.timeout
            )
            with connection:
                size = self._kernel.size(attachment.index)
                if export.size < size:
                    raise VsError(
                        "VS5081",
                        Kind.UNREACHABLE,
                        f"{name} has {export.size} bytes of {attachment.volume}, not {size}; it "
                        "will be tried again",
                    )
                await self._give(link_of(name, connection), connection)
        except VsError as error:
            self.kept.counters.failures += 1
            address.error = str(error)
            address.again = asyncio.get_running_loop().time() + address.pause
            address.pause = min(address.pause * 2, LAST_RETRY)
            return
        address.connected, address.error, address.pause = True, "", FIRST_RETRY
        self.kept.counters.reconnections += 1
        self._log.info("path_connected", address=name)

    async def _give(self, link: Link, connection: socket.socket) -> None:
        async with self._giving:
            # Remembered first: a process that dies in between knows which are its own.
            attachment = self.kept.attachment
            self._keep(replace(attachment, links=(*attachment.links, link)))
            read = await asyncio.to_thread(
                self._kernel.reconnect,
                attachment.index,
                attachment.volume_id,
                connection,
                len(self.kept.attachment.links),
            )
            if not read:
                self._log.warning("not_read", address=link.address)

"""Every volume that this host has attached."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass, replace
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from vswitchd.errors import Kind, VsError
from vswitchd.host import handshake, hosttab, memory
from vswitchd.host.decide import Attachment, slots_for
from vswitchd.host.keeper import Keeper, Kept
from vswitchd.host.kernel import Kernel, link_of
from vswitchd.host.paths import Controller, Paths

#: Seconds between tries of what hosttab wants and is not to be had.
RETRY = 1.0
#: Seconds that who attaches a volume waits for its other paths.
FIRST_LOOK = 5.0


@dataclass
class Waiting:
    """A volume of hosttab that is not attached yet, and why."""

    index: int | None
    error: str = ""


class Host:
    """`state`: a file; `tab`: hosttab. Changes to one volume wait for one another."""

    def __init__(
        self,
        kernel: Kernel,
        controller: Controller,
        state: Path,
        tab: Path,
        log: FilteringBoundLogger,
    ) -> None:
        self._kernel = kernel
        self._controller = controller
        self._state = state
        self._tab = tab
        self._log = log
        self._memory = memory.load(state)
        self._keepers: dict[str, tuple[Keeper, asyncio.Task[None]]] = {}
        self.waiting: dict[str, Waiting] = {}
        self._change = asyncio.Lock()
        self._told: socket.socket | None = None
        self._trying: asyncio.Task[None] | None = None

    # What people ask.

    @property
    def kept(self) -> dict[str, Kept]:
        """What is attached, by volume."""
        return {volume: keeper.kept for volume, (keeper, _) in sorted(self._keepers.items())}

    def at_boot(self) -> dict[str, int | None]:
        """What hosttab says; nothing if there is none."""
        return hosttab.parse(self._text(), str(self._tab))

    async def attach(self, volume: str, device: str, boot: bool) -> Kept:
        """Makes a volume a device (empty: any). A volume that is attached already stays as it is;
        VS2061 if that is another device."""
        index = hosttab.device_index(device or "-")
        async with self._change:
            kept = await self._attach(volume, index)
            if boot:
                self._write_tab(volume, kept.attachment.index)
            return kept

    async def detach(self, volume: str, boot: bool, force: bool) -> Kept | None:
        """Takes a device away, and out of hosttab if that is wanted; None if it was there alone.
        VS3082 if it is in use."""
        async with self._change:
            waited = self.waiting.pop(volume, None) is not None
            in_tab = boot and volume in self.at_boot()
            if volume not in self._keepers:
                if not waited and not in_tab:
                    raise VsError(
                        "VS2062",
                        Kind.NOT_FOUND,
                        f"{volume} is not attached here; `vswitchctl host list` shows what is",
                    )
                if in_tab:
                    self._write_tab(volume, False)
                return None
            keeper, task = self._keepers[volume]
            kept = keeper.kept
            attachment = kept.attachment
            if not force and await asyncio.to_thread(self._kernel.in_use, attachment.index):
                raise VsError(
                    "VS3082",
                    Kind.PRECONDITION,
                    f"{attachment.device} is in use: unmount what is on it (`findmnt "
                    f"{attachment.device}`, `lsblk {attachment.device}`), or say --force, which "
                    "gives its users errors",
                )
            task.cancel()
            await asyncio.wait([task])
            del self._keepers[volume]
            await asyncio.to_thread(self._kernel.disconnect, attachment.index)
            self._memory.pop(volume, None)
            memory.save(self._state, self._memory)
            if in_tab:
                self._write_tab(volume, False)
            self._log.info("detached", volume=volume, device=attachment.device)
            return kept

    # Beginning and end.

    async def start(self, patience: float) -> None:
        """Takes up what was attached before, attaches what hosttab says, and returns when all of
        it is there, or `patience` seconds have passed: the rest goes on being tried."""
        wanted = self.at_boot()
        for volume, attachment in list(self._memory.items()):
            index = await asyncio.to_thread(self._kernel.find, attachment.volume_id)
            if index is None:
                # The host was booted, or somebody else took it away.
                del self._memory[volume]
                if volume in wanted:
                    self._memory[volume] = replace(attachment, links=())
            else:
                self._take_up(replace(attachment, index=index))
                await self._listen()
        self.waiting = {v: Waiting(i) for v, i in wanted.items() if v not in self._keepers}
        self._trying = asyncio.create_task(self._try())
        await asyncio.wait([self._trying], timeout=patience)
        if self.waiting:
            self._log.warning("boot_incomplete", volumes=sorted(self.waiting))

    async def stop(self) -> None:
        """Lets go; what is attached stays."""
        tasks = [task for _, task in self._keepers.values()]
        if self._trying is not None:
            tasks.append(self._trying)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._told is not None:
            asyncio.get_running_loop().remove_reader(self._told.fileno())
            self._told.close()

    async def _try(self) -> None:
        """What hosttab wants, until it is there."""
        while self.waiting:
            for volume, waiting in list(self.waiting.items()):
                async with self._change:
                    if volume not in self.waiting:
                        continue
                    try:
                        await self._attach(volume, waiting.index)
                    except VsError as error:
                        if waiting.error != str(error):
                            self._log.warning("not_attached", volume=volume, error=str(error))
                        waiting.error = str(error)
            await asyncio.sleep(RETRY)

    # How it is done.

    async def _attach(self, volume: str, index: int | None) -> Kept:
        if volume in self._keepers:
            kept = self._keepers[volume][0].kept
            if index not in (None, kept.attachment.index):
                raise VsError(
                    "VS2061",
                    Kind.EXISTS,
                    f"{volume} is {kept.attachment.device} already; detach it there first",
                )
            return kept
        paths = await self._paths(volume)
        found = await asyncio.to_thread(self._kernel.find, paths.volume_id)
        if found is not None:
            # Made by a process that died before it could say so; its connections are remembered.
            before = self._memory.get(volume)
            links = before.links if before and before.volume_id == paths.volume_id else ()
            slots = before.slots if before else slots_for(paths.addresses)
            self._take_up(Attachment(volume, paths.volume_id, found, slots, paths.addresses, links))
        else:
            await self._connect(volume, index, paths)
        await self._listen()
        self.waiting.pop(volume, None)
        return self._keepers[volume][0].kept

    async def _paths(self, volume: str) -> Paths:
        """From the controller, or as they were when it was last there."""
        try:
            return await self._controller.paths(volume)
        except VsError as error:
            before = self._memory.get(volume)
            if before is None or error.kind not in (Kind.UNREACHABLE, Kind.TIMEOUT):
                raise
            return Paths(before.volume_id, 0, before.addresses)

    async def _connect(self, volume: str, index: int | None, paths: Paths) -> None:
        """Makes the device of a connection to the first SP that lets this host in; the others'
        are the keeper's."""
        errors = []
        for address in paths.addresses:
            try:
                connection, export = await asyncio.to_thread(
                    handshake.connect, address, volume, self._kernel.timeout
                )
                break
            except VsError as error:
                errors.append(error.message)
        else:
            raise VsError(
                "VS5082",
                Kind.UNREACHABLE,
                f"none of the SPs that serve {volume} lets this host in "
                f"({'; '.join(errors) or 'no SP serves it'})",
            )
        with connection:
            attachment = Attachment(
                volume,
                paths.volume_id,
                -1 if index is None else index,
                slots_for(paths.addresses),
                paths.addresses,
                (link_of(address, connection),),
            )
            self._remember(attachment)
            made = await asyncio.to_thread(
                self._kernel.connect,
                index,
                paths.volume_id,
                export,
                connection,
                attachment.slots,
            )
        keeper = self._take_up(replace(attachment, index=made))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_LOOK):
                await keeper.looked.wait()

    def _take_up(self, attachment: Attachment) -> Keeper:
        """From now on it is kept."""
        self._remember(attachment)
        kept = Kept(attachment, self._kernel.size(attachment.index))
        keeper = Keeper(kept, self._kernel, self._controller, self._remember, self._log)
        task = asyncio.create_task(keeper.run())
        task.add_done_callback(self._fault)
        self._keepers[attachment.volume] = keeper, task
        self._log.info("attached", volume=attachment.volume, device=attachment.device)
        return keeper

    def _fault(self, task: asyncio.Task[None]) -> None:
        """A keeper that ends by itself is a defect: the log has it, the next start mends it."""
        if not task.cancelled() and (error := task.exception()):
            self._log.error("fault", exc_info=error)

    def _remember(self, attachment: Attachment) -> None:
        self._memory[attachment.volume] = attachment
        memory.save(self._state, self._memory)

    async def _listen(self) -> None:
        """Has the kernel tell of dead links; without that they are found at the next look."""
        if self._told is not None:
            return
        try:
            self._told = await asyncio.to_thread(self._kernel.dead_links)
        except (OSError, VsError) as error:
            self._log.warning("not_told_of_dead_links", error=str(error))
            return
        asyncio.get_running_loop().add_reader(self._told.fileno(), self._dead_link, self._told)

    def _dead_link(self, told: socket.socket) -> None:
        # Which one it was, the connections themselves say. Lost news (ENOBUFS) are news, too.
        try:
            told.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            pass
        for keeper, _ in self._keepers.values():
            keeper.wake.set()

    # hosttab.

    def _text(self) -> str:
        try:
            return self._tab.read_text()
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise VsError(
                "VS3084", Kind.PRECONDITION, f"{self._tab} can't be read: {error.strerror}"
            ) from None

    def _write_tab(self, volume: str, index: int | bool) -> None:
        text = hosttab.edited(self._text(), {volume: index})
        beside = self._tab.with_suffix(".new")
        try:
            self._tab.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(text)
            beside.rename(self._tab)
        except OSError as error:
            raise VsError(
                "VS3084", Kind.PRECONDITION, f"{self._tab} can't be written: {error.strerror}"
            ) from None

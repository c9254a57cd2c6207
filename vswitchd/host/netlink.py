"""The kernel's NBD client through generic netlink, family "nbd", as pyroute2 would have it.

Source: include/uapi/linux/nbd-netlink.h (the names and numbers) and drivers/block/nbd.c (what they
do), Linux 6.1. Needs CAP_SYS_ADMIN. The calls block; file descriptors of sockets are looked up in
the process that sends the message, so they must be its own.
"""

from __future__ import annotations

from pyroute2.netlink import NLA_F_NESTED, NLM_F_ACK, NLM_F_REQUEST, genlmsg, nla
from pyroute2.netlink.generic import AsyncGenericNetlinkSocket, GenericNetlinkSocket

NBD_GENL_FAMILY_NAME = "nbd"
NBD_GENL_VERSION = 1
NBD_GENL_MCAST_GROUP_NAME = "nbd_mc_group"

NBD_CMD_CONNECT = 1
NBD_CMD_DISCONNECT = 2
NBD_CMD_RECONFIGURE = 3
NBD_CMD_LINK_DEAD = 4
NBD_CMD_STATUS = 5


class nbdcmd(genlmsg):  # noqa: N801 - named as its kin in pyroute2
    """A message of the family. Sizes are in bytes, times in seconds."""

    prefix = "NBD_ATTR_"
    nla_map = (
        ("NBD_ATTR_UNSPEC", "none"),
        ("NBD_ATTR_INDEX", "uint32"),
        ("NBD_ATTR_SIZE_BYTES", "uint64"),
        ("NBD_ATTR_BLOCK_SIZE_BYTES", "uint64"),
        ("NBD_ATTR_TIMEOUT", "uint64"),
        ("NBD_ATTR_SERVER_FLAGS", "uint64"),
        ("NBD_ATTR_CLIENT_FLAGS", "uint64"),
        ("NBD_ATTR_SOCKETS", "nbd_sockets"),
        ("NBD_ATTR_DEAD_CONN_TIMEOUT", "uint64"),
        ("NBD_ATTR_DEVICE_LIST", "nbd_devices"),
        ("NBD_ATTR_BACKEND_IDENTIFIER", "asciiz"),
    )

    class nbd_sockets(nla):  # noqa: N801
        """A list of sockets."""

        nla_flags = NLA_F_NESTED
        nla_map = (("NBD_SOCK_ITEM_UNSPEC", "none"), ("NBD_SOCK_ITEM", "nbd_socket"))

        class nbd_socket(nla):  # noqa: N801
            """One socket."""

            nla_flags = NLA_F_NESTED
            nla_map = (("NBD_SOCK_UNSPEC", "none"), ("NBD_SOCK_FD", "uint32"))

    class nbd_devices(nla):  # noqa: N801
        """A list of devices."""

        nla_flags = NLA_F_NESTED
        nla_map = (("NBD_DEVICE_ITEM_UNSPEC", "none"), ("NBD_DEVICE_ITEM", "nbd_device"))

        class nbd_device(nla):  # noqa: N801
            """One device."""

            nla_flags = NLA_F_NESTED
            nla_map = (
                ("NBD_DEVICE_UNSPEC", "none"),
                ("NBD_DEVICE_INDEX", "uint32"),
                ("NBD_DEVICE_CONNECTED", "uint8"),
            )


def _sockets(fds: list[int]) -> dict[str, object]:
    items = [["NBD_SOCK_ITEM", {"attrs": [["NBD_SOCK_FD", fd]]}] for fd in fds]
    return {"attrs": items}


class AsyncNBD(AsyncGenericNetlinkSocket):
    """The calls, for an event loop of asyncio's own kind."""

    async def setup_endpoint(self) -> None:
        """Finds the family; NetlinkError with ENOENT when nbd.ko is not loaded."""
        if getattr(self.local, "transport", None) is not None:
            return
        await super().setup_endpoint()
        await self.bind(NBD_GENL_FAMILY_NAME, nbdcmd)

    async def _call(self, command: int, **attributes: object) -> list[nbdcmd]:
        message = nbdcmd()
        message["cmd"] = command
        message["version"] = NBD_GENL_VERSION
        message["attrs"] = [
            [f"NBD_ATTR_{name.upper()}", value]
            for name, value in attributes.items()
            if value is not None
        ]
        request = await self.nlm_request(
            message, msg_type=self.prid, msg_flags=NLM_F_REQUEST | NLM_F_ACK
        )
        return [answer async for answer in request]

    async def connect(
        self,
        fds: list[int],
        *,
        index: int | None,
        size: int,
        block_size: int,
        server_flags: int,
        timeout: int,
        dead_conn_timeout: int,
        backend_identifier: str,
    ) -> int:
        """Makes /dev/nbd<index> of connected sockets (None: a free one). Returns its index."""
        answers = await self._call(
            NBD_CMD_CONNECT,
            index=index,
            size_bytes=size,
            block_size_bytes=block_size,
            timeout=timeout,
            server_flags=server_flags,
            dead_conn_timeout=dead_conn_timeout,
            backend_identifier=backend_identifier,
            sockets=_sockets(fds),
        )
        found = [answer.get_attr("NBD_ATTR_INDEX") for answer in answers]
        return int(next((one for one in found if one is not None), index or 0))

    async def reconfigure(
        self,
        index: int,
        *,
        backend_identifier: str,
        fds: list[int] | None = None,
        size: int | None = None,
    ) -> None:
        """Puts sockets in the place of dead ones, or sets the size. A socket for which there
        is no dead one is dropped without a word; EINVAL if the backend is another."""
        await self._call(
            NBD_CMD_RECONFIGURE,
            index=index,
            size_bytes=size,
            sockets=_sockets(fds) if fds else None,
            backend_identifier=backend_identifier,
        )

    async def disconnect(self, index: int) -> None:
        """Says goodbye to the servers; the device is empty afterwards."""
        await self._call(NBD_CMD_DISCONNECT, index=index)


class NBD(GenericNetlinkSocket):
    """The same calls, blocking; a context manager."""

    async_class = AsyncNBD

    def connect(self, fds: list[int], **options: object) -> int:
        """See `AsyncNBD.connect`."""
        return int(self._run_with_cleanup(self.asyncore.connect, fds, **options))

    def reconfigure(self, index: int, **options: object) -> None:
        """See `AsyncNBD.reconfigure`."""
        self._run_with_cleanup(self.asyncore.reconfigure, index, **options)

    def disconnect(self, index: int) -> None:
        """See `AsyncNBD.disconnect`."""
        self._run_with_cleanup(self.asyncore.disconnect, index)

    def dead_links_group(self) -> int:
        """The number of the multicast group that tells of dead links."""

        async def found() -> int:
            return int(self.asyncore.mcast_groups[NBD_GENL_MCAST_GROUP_NAME])

        return int(self._run_with_cleanup(found))

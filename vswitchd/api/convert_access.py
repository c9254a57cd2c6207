"""Who may use a volume, as messages: to and from SPs with the secrets, to people without."""

from __future__ import annotations

from collections.abc import Mapping

from vswitchd.model.access import OPEN, Access, Chap, Entry
from vswitchd.model.objects import SpId, Volume
from vswitchd.rpc import volume_pb2, vsm_pb2


def access_to_proto(access: Access) -> vsm_pb2.Access:
    """For an SP."""
    return vsm_pb2.Access(
        version=access.version, nbd=access.nbd, entries=map(_entry_to_proto, access.entries)
    )


def _entry_to_proto(entry: Entry) -> vsm_pb2.AccessEntry:
    message = vsm_pb2.AccessEntry(initiator=entry.initiator)
    if entry.chap is not None:
        message.user, message.secret = entry.chap.user, entry.chap.secret
    if entry.mutual is not None:
        message.mutual_user, message.mutual_secret = entry.mutual.user, entry.mutual.secret
    return message


def access_from_proto(message: vsm_pb2.Access) -> Access:
    """From a controller or an SP; one of version 0 says nothing."""
    if not message.version:
        return OPEN
    return Access(message.version, message.nbd, tuple(map(_entry_from_proto, message.entries)))


def _entry_from_proto(message: vsm_pb2.AccessEntry) -> Entry:
    chap = Chap(message.user, message.secret) if message.user else None
    mutual = Chap(message.mutual_user, message.mutual_secret) if message.mutual_user else None
    return Entry(message.initiator, chap, mutual)


def chap_from_proto(message: volume_pb2.ChapSecret) -> Chap:
    """Of a request."""
    return Chap(message.user, message.secret)


def access_message(
    volume: Volume, access: Access, held: Mapping[SpId, int | None]
) -> volume_pb2.VolumeAccess:
    """For people. `held`: the version that each SP goes by; None: it was not heard."""
    return volume_pb2.VolumeAccess(
        volume_id=volume.id,
        name=volume.name,
        version=access.version,
        nbd=access.nbd,
        initiators=[
            volume_pb2.AllowedInitiator(
                initiator=entry.initiator,
                chap_user=entry.chap.user if entry.chap else "",
                mutual_user=entry.mutual.user if entry.mutual else "",
            )
            for entry in access.entries
        ],
        sps=[
            volume_pb2.AccessAt(sp=sp, version=version or 0, heard=version is not None)
            for sp, version in sorted(held.items())
        ],
    )

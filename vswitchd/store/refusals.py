"""What every store refuses, in the same words."""

from __future__ import annotations

from vswitchd.errors import Kind, VsError


def stale_volume(name: str, found: int | None, expected: int | None) -> VsError:
    """The stored version is another than the one that was decided upon."""
    return VsError(
        "VS3042",
        Kind.STALE,
        f"volume {name} is at version {found}, not {expected}; look again, then decide again",
    )


def stale_access(volume: str, found: int, expected: int) -> VsError:
    """Somebody else has changed it since."""
    return VsError(
        "VS3047",
        Kind.STALE,
        f"who may use volume {volume} is at version {found}, not {expected}; look again "
        "(`vswitchctl volume access list`), then decide again",
    )


def access_of_nothing(volume: str) -> VsError:
    """The volume is gone."""
    return VsError(
        "VS3047", Kind.STALE, f"volume {volume} is gone, so nobody can be let in or kept out"
    )


def volume_exists(name: str) -> VsError:
    """Names of volumes are unique."""
    return VsError("VS2030", Kind.EXISTS, f"there is a volume {name} already; choose another name")


def device_exists(name: str) -> VsError:
    """Names of devices are unique."""
    return VsError(
        "VS2031", Kind.EXISTS, f"there is a device {name} already; choose another --name"
    )


def operation_moved(operation: str) -> VsError:
    """The journal's cursor is not where it was left."""
    return VsError(
        "VS3043", Kind.STALE, f"operation {operation} was moved on by another controller"
    )


def not_empty(cluster: str) -> VsError:
    """Only a store that has never held anything can take over a cluster."""
    return VsError(
        "VS6031",
        Kind.UNSAFE,
        f"this store has a cluster of its own already, so it can't become that of {cluster}; "
        "start a controller with an empty --state for it",
    )

"""The I/O engine: the one seam between Python and Rust.

Objects cross as JSON text (the shapes are in docs/engine.md). Every call that may wait
releases the interpreter's lock. Every failed call raises EngineError, whose args are
(kind, message); kind is one of errors.Kind's values.
"""

class EngineError(Exception): ...

class Engine:
    def __init__(self, config: str) -> None:
        """Starts the event loops. Config: cluster_id, sp, incarnation, loops, pool_threads,
        hold_seconds, max_inflight_bytes_per_connection, max_connections, device_roots,
        resident_percent, spin_microseconds."""

    def listen_nbd(self, address: str) -> str:
        """Serves NBD at "host:port" or "unix:/path"; returns the bound address."""

    def listen_iscsi(self, address: str) -> str:
        """Serves iSCSI at "host:port"; returns the bound address."""

    def set_portal_group(self, tag: int, advertised: str) -> None:
        """The tag of the portal group that all iSCSI listeners are, and the "host:port" where
        initiators are told to come; empty: where they have come."""

    def access_set(self, volume_id: str, access: str) -> None:
        """Who may use a volume, served already or not; until then, and after `t2_remove`, whoever
        comes may. JSON {"nbd": bool, "entries": [{"initiator", "user", "secret", "mutual_user",
        "mutual_secret"}]}: over NBD anybody or nobody, over iSCSI these initiators, or anybody if
        there are no entries; of what is not demanded name and secret are empty. When it returns,
        sessions that this does not admit have ended."""

    def listen_peer(self, address: str) -> str:
        """Serves other SPs at "host:port"; returns the bound address."""

    def shutdown(self, seconds: float) -> bool:
        """Stops reading, answers what is in flight, flushes, closes; True if all of it
        ended in time (the end was clean). The engine is unusable afterwards."""

    def hand_over(
        self, seconds: float
    ) -> tuple[bool, list[tuple[int, str, str]], list[tuple[int, str, bytes]]]:
        """Ends like `shutdown`, but neither listeners nor hosts' sessions are closed: (clean,
        [(fd, what is spoken there, address)], [(fd, facts, unread)]), for `take_listener` and
        `take_session` of another process's engine. The caller owns the descriptors."""

    def take_listener(self, fd: int, speaks: str) -> str:
        """Serves "nbd", "iscsi" or "peer" on a socket that listens already, of TCP or, for NBD, a
        unix one; returns its address.
        The descriptor is the engine's from now on; "invalid" if it is no such socket."""

    def take_session(self, fd: int, facts: str, unread: bytes) -> None:
        """Goes on with a host's session; it is closed if its volume is not active here."""

    def device_add(
        self, uri: str, create_size: int, device_id: str, direct: bool, checksums: bool
    ) -> str:
        """Opens a device; labels it as `device_id` if it is blank ("unsafe" if that is empty).
        With `direct` hosts' data goes past the page cache ("invalid" where that can't be,
        "precondition" if it is open the other way). With `checksums` a blank one is labelled with
        checksums ("invalid" where that can't be), and one that is labelled without is refused
        ("unlike", which is no errors.Kind). Returns its device JSON."""

    def device_remove(self, device_id: str) -> None: ...
    def devices(self) -> str:
        """JSON list of device views."""

    def t1_put(self, t1: str, epoch: int) -> None: ...
    def t1_adopt(self, t1: str, epoch: int) -> None: ...
    def t1_fence(self, t1_id: str, epoch: int, from_epoch: int | None, seconds: float) -> None:
        """Raises a T1 object's epoch and waits for lower ones' I/O; "stale" if it is at a higher
        one. With `from_epoch` only an object that is at just that epoch, or at `epoch` already,
        and not in doubt; "stale" if not."""

    def t1_delete(self, t1_id: str, epoch: int) -> None:
        """Forgets a T1 object; "stale" if it is at a higher epoch."""

    def t1s(self, volume_id: str) -> str:
        """JSON {"t1s": [{"t1": ..., "epoch": n}], "others": n}: the volume's ("": all), and how
        many others there are."""

    def t2_activate(self, t2: str, resync: bool, seconds: float) -> int:
        """Swaps the volume's tree, or adds the volume; returns the pause in microseconds.
        With `resync`, mirrors are read from their first in-sync leg only, until the engine
        has copied that leg onto the others."""

    def t2_remove(self, volume_id: str, seconds: float) -> None: ...
    def t2s(self, volume_id: str) -> str:
        """JSON list of {"volume": id, "version": n, "epoch": n, "resync_percent": n}: of that
        volume, if it is active ("": of all)."""

    def trouble(self) -> str:
        """JSON {"failing": [id], "doubtful": {id: epoch}}: T1 objects under mirrors that have
        failed hosts' writes or flushes, and without which their volumes can go on; and those under
        which power was lost, with writes that were not flushed, which serve nobody until they
        are fenced anew."""

    def reference_drop(self, volume_id: str, t1_id: str) -> None:
        """Closes the remote reference to a T1 object; "precondition" while the tree uses it."""

    def copy_start(
        self,
        volume_id: str,
        path: list[int],
        start: int,
        rate: int,
        adaptive: bool,
        mode: str,
    ) -> None:
        """Copies onto the write-only leg at `path` from byte `start` on, which an earlier copy has
        made durable up to there; at most `rate` bytes per second (0: no limit), and, `adaptive`,
        less while hosts' latency suffers; `delta`: only what the write-intent maps of the mirror's
        legs have. One that runs takes the limits and goes on."""

    def copy_throttle(self, volume_id: str, path: list[int], rate: int, adaptive: bool) -> None:
        """Changes a copy's limits; "not_found" if there is none."""

    def copy_stop(self, volume_id: str, path: list[int]) -> None: ...
    def copies(self) -> str:
        """JSON list of copy views."""

    def labels(self) -> str:
        """JSON list of what the devices' labels say, read afresh: {"device", "uri", "cluster",
        "generation", "copies": valid ones of two, "t1s": [{"t1", "epoch"}] whatever their home,
        "error": why it can't be read}."""

    def metrics(self) -> str:
        """JSON of every counter, gauge and histogram, cheap enough for each scrape."""

"""Stamped blocks: every write is unique, so a read tells exactly which write it sees."""

from __future__ import annotations

import random
import threading
from pathlib import Path

from tests.e2e.nbd import ESHUTDOWN, Client, NbdError

BLOCK = 4096
#: Most writes go to places this many blocks apart, which move on by a step after so many writes:
#: what was written a while ago stays as it is for longer, so that a leg that missed it is seen.
APART, STEP, STAY = 128, 8, 1024


def stamp(block: int, serial: int) -> bytes:
    """4 KiB that name their block and the write that made them; serial 0 is a fresh volume."""
    if not serial:
        return bytes(BLOCK)
    return f"block {block:012d} write {serial:018d} ".encode().ljust(64, b".") * (BLOCK // 64)


class Stamper:
    """Writes stamps at random, reads them back, and knows what every block may hold.

    A block holds its last acknowledged write, or one that was sent after it and never
    answered; after a loss of power also what was flushed last, or anything since. Anything else
    is lost or torn data, and is remembered in `faults`.
    """

    def __init__(self, first: int, blocks: int, seed: int) -> None:
        self.first = first
        self.blocks = blocks
        self.random = random.Random(seed)
        self.serial = 0
        self.acked = [0] * blocks
        self.open: dict[int, set[int]] = {}
        #: By block, the last write that was flushed, and those since.
        self.flushed = [0] * blocks
        self.since: dict[int, set[int]] = {}
        #: A connection is open.
        self.connected = False
        #: Of its writes so many are FUA, and are followed by a flush.
        self.fua, self.flushes = 0.1, 0.02
        self.faults: list[str] = []
        self.errors: list[str] = []
        self.writes = 0

    def write(self, client: Client) -> None:
        """One write of one to eight blocks, recorded before it is sent and when it is answered."""
        start = self._place()
        count = min(self.random.randint(1, STEP), self.blocks - start)
        self.serial += 1
        serial = self.serial
        for block in range(start, start + count):
            self.open.setdefault(block, set()).add(serial)
            self.since.setdefault(block, set()).add(serial)
        fua = self.random.random() < self.fua
        data = b"".join(stamp(self.first + b, serial) for b in range(start, start + count))
        client.write((self.first + start) * BLOCK, data, fua=fua)
        for block in range(start, start + count):
            self.acked[block] = serial
            # One connection at a time: a write of an older connection cannot land any more.
            self.open.pop(block, None)
            if fua:
                self._durable(block)
        self.writes += 1

    def _place(self) -> int:
        places = self.blocks // APART
        if not places or self.random.random() < 0.05:
            return self.random.randrange(self.blocks)
        step = self.serial // STAY * STEP % APART
        return self.random.randrange(places) * APART + step

    def flush(self, client: Client) -> None:
        """After it, all that was acknowledged before is safe even from a loss of power."""
        client.flush()
        for block in list(self.since):
            if block not in self.open:
                self._durable(block)

    def _durable(self, block: int) -> None:
        self.flushed[block] = self.acked[block]
        self.since.pop(block, None)

    def is_cut_off(self) -> bool:
        """No connection is open."""
        return not self.connected

    def power_lost(self) -> None:
        """Everything lost its power, after the connection was lost: what was not flushed may be
        gone, or partly."""
        assert not self.connected
        for block, since in self.since.items():
            self.open.setdefault(block, set()).update(since, {self.flushed[block]})

    def check(self, client: Client, start: int, count: int) -> None:
        """Reads some blocks and settles which of the possible writes they hold."""
        data = client.read((self.first + start) * BLOCK, count * BLOCK)
        for index in range(count):
            block = start + index
            got = data[index * BLOCK : (index + 1) * BLOCK]
            may = {self.acked[block], *self.open.get(block, ())}
            held = [serial for serial in may if got == stamp(self.first + block, serial)]
            if held:
                self.acked[block] = held[0]
                self.open.pop(block, None)
                if held[0] == self.flushed[block]:
                    self.since.pop(block, None)
                elif block in self.since:
                    self.since[block] = {held[0]}
            else:
                self.faults.append(
                    f"block {self.first + block} reads {got[:48]!r}, expected of writes {may}"
                )

    def check_all(self, client: Client) -> None:
        """Reads every block."""
        for start in range(0, self.blocks, 256):
            self.check(client, start, min(256, self.blocks - start))
        assert not self.faults, "\n".join(self.faults[:10])

    def run(self, connect: list[tuple[str, str]], stop: threading.Event, *, keep: bool) -> None:
        """Writes and reads back until told to stop, over each (address, export) in turn.

        With `keep` a lost connection is an error; otherwise it is made again, elsewhere.
        """
        turn = 0
        while not stop.is_set():
            address, export = connect[turn % len(connect)]
            turn += 1
            try:
                with Client(address, export, seconds=150.0) as client:
                    self.connected = True
                    while not stop.is_set() and not self.faults:
                        self.write(client)
                        if self.random.random() < self.flushes:
                            self.flush(client)
                        if self.random.random() < 0.3:
                            start = self.random.randrange(self.blocks)
                            self.check(client, start, min(16, self.blocks - start))
                        if keep and len(connect) > 1 and self.random.random() < 0.001:
                            break
            except (OSError, NbdError) as error:
                self.connected = False
                # An SP that ends says so; no other error is meant for hosts.
                ending = isinstance(error, NbdError) and error.number == ESHUTDOWN
                if keep or not (ending or isinstance(error, OSError)):
                    self.errors.append(f"{address}: {error!r}")
                    return
                stop.wait(0.05)
            if self.faults:
                return

    def wrote_more_than(self, writes: int) -> bool:
        """Whether writes went on since there were that many."""
        return self.writes > writes

    def save(self, path: Path) -> None:
        """Writes the copy that a second path kept: what the volume must hold."""
        with path.open("wb") as copy:
            for block, serial in enumerate(self.acked):
                copy.write(stamp(self.first + block, serial))


class Writer:
    """A Stamper that runs in a thread of its own while the block runs."""

    def __init__(
        self, stamper: Stamper, connect: list[tuple[str, str]], *, keep: bool = True
    ) -> None:
        self.stamper = stamper
        self.stop = threading.Event()
        self.thread = threading.Thread(
            target=stamper.run, args=(connect, self.stop), kwargs={"keep": keep}, daemon=True
        )

    def __enter__(self) -> Stamper:
        self.thread.start()
        return self.stamper

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join(180.0)
        assert not self.thread.is_alive(), "the writer hangs"
        assert not self.stamper.faults, "\n".join(self.stamper.faults[:10])
        assert not self.stamper.errors, "\n".join(self.stamper.errors)

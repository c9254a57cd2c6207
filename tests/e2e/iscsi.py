"""A small iSCSI initiator (RFC 7143): one command at a time, no digests, for what libiscsi's tools
do not show.
"""

from __future__ import annotations

import hashlib
import socket
import struct
from types import TracebackType

PREFIX = "iqn.2026-11.io.vswitchd:"
#: Seconds until an answer must be there.
PATIENCE = 30.0
READ_10, WRITE_10, READ_CAPACITY_10, TEST_UNIT_READY = 0x28, 0x2A, 0x25, 0x00
PERSISTENT_RESERVE_IN, PERSISTENT_RESERVE_OUT, MAINTENANCE_IN = 0x5E, 0x5F, 0xA3
#: Service actions of PERSISTENT RESERVE OUT, a type of reservation, and a status.
REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT = range(5)
WRITE_EXCLUSIVE = 1
CONFLICT = 0x18
_COMMAND, _LOGIN, _NOP_OUT, _LOGOUT = 0x01, 0x43, 0x40, 0x06
_RESPONSE, _DATA_IN, _NOP_IN, _R2T, _DATA_OUT = 0x21, 0x25, 0x20, 0x31, 0x05
_NONE = 0xFFFFFFFF


def url(address: str, volume: str) -> str:
    """What libiscsi's tools and QEMU call a volume."""
    return f"iscsi://{address}/{PREFIX}{volume}/1"


class SenseError(Exception):
    """A command has failed: sense key and additional code."""

    def __init__(self, key: int, code: int) -> None:
        super().__init__(f"sense {key:x}/{code:04x}")
        self.key, self.code = key, code


class StatusError(Exception):
    """A command has ended with another status than GOOD or CHECK CONDITION."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status:#x}")
        self.status = status


class RefusedError(Exception):
    """A login was refused: status class and detail."""


class Initiator:
    """A session with a volume's target. `qualifier`: the session's own part of its identity;
    `chap`: user and secret, by MD5."""

    def __init__(
        self,
        address: str,
        volume: str,
        name: str = "iqn.2026-11.test:host",
        qualifier: int = 1,
        chap: tuple[str, str] | None = None,
    ) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), PATIENCE)
        self._command = 1
        self._task = 0
        keys = {
            "InitiatorName": name,
            "TargetName": PREFIX + volume,
            "SessionType": "Normal",
            "InitialR2T": "Yes",
            "ImmediateData": "Yes",
        }
        self._identity = struct.pack(">BHBHH", 0x80, 0, qualifier, 0, 0)
        try:
            if chap is not None:
                names = {"InitiatorName": name, "TargetName": PREFIX + volume}
                self._login(0x00, {**names, "AuthMethod": "CHAP"})
                told = self._login(0x00, {"CHAP_A": "5"})
                asked = bytes.fromhex(told["CHAP_C"][2:])
                whole = bytes([int(told["CHAP_I"])]) + chap[1].encode() + asked
                response = hashlib.md5(whole).hexdigest()
                self._login(0x81, {"CHAP_N": chap[0], "CHAP_R": f"0x{response}"})
                del keys["InitiatorName"], keys["TargetName"], keys["SessionType"]
            self._login(0x87, keys)
        except RefusedError:
            self._socket.close()
            raise

    def __enter__(self) -> Initiator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    def _login(self, flags: int, keys: dict[str, str]) -> dict[str, str]:
        """One request; the keys of the answer."""
        data = "".join(f"{key}={value}\0" for key, value in keys.items()).encode()
        self._send(_LOGIN, flags, self._identity, 0, struct.pack(">III", 0, 1, 0), data)
        header, said = self._receive()
        if header[36:38] != b"\0\0":
            raise RefusedError(header[36:38].hex())
        pairs = said.decode().rstrip("\0").split("\0")
        return dict(pair.split("=", 1) for pair in pairs if pair)

    def run(self, cdb: bytes, length: int = 0, data: bytes = b"") -> bytes:
        """A command; what it gives. SenseError if it fails, ConnectionError if the target is
        gone."""
        self._task += 1
        task = self._task
        flags = 0x80 | (0x40 if length else 0) | (0x20 if data else 0)
        fields = struct.pack(">II", length or len(data), self._command) + bytes(4)
        self._command += 1
        lun = bytes([0, 1, 0, 0, 0, 0, 0, 0])
        first = data[:8192]
        self._send(_COMMAND, flags, lun, task, fields + cdb.ljust(16, b"\0"), first, at=20)
        found = b""
        while True:
            header, part = self._receive()
            kind = header[0] & 0x3F
            if kind == _DATA_IN:
                found += part
                if header[1] & 1:
                    return found
            elif kind == _R2T:
                self._bring(header, task, data)
            elif kind == _NOP_IN:
                # The target asks whether somebody waits.
                told = header[20:24] + struct.pack(">I", self._command)
                self._send(_NOP_OUT, 0x80, header[8:16], _NONE, told, b"")
            elif kind == _RESPONSE:
                if header[3] == 2:
                    raise SenseError(part[4] & 15, int.from_bytes(part[14:16], "big"))
                if header[3]:
                    raise StatusError(header[3])
                return found

    def ready(self) -> None:
        """Until the unit has nothing more to say of itself."""
        for _ in range(4):
            try:
                self.run(bytes([TEST_UNIT_READY]))
                return
            except SenseError as error:
                if error.key != 6:
                    raise

    def read(self, block: int, count: int) -> bytes:
        """Blocks of 512 bytes."""
        return self.run(struct.pack(">BxIxHx", READ_10, block, count), count * 512)

    def write(self, block: int, data: bytes) -> None:
        """The same."""
        self.run(struct.pack(">BxIxHx", WRITE_10, block, len(data) // 512), 0, data)

    def capacity(self) -> int:
        """Bytes of the unit."""
        last, size = struct.unpack(">II", self.run(bytes([READ_CAPACITY_10]), 8))
        return int((last + 1) * size)

    def reserve_out(self, action: int, kind: int = 0, key: int = 0, other: int = 0) -> None:
        """PERSISTENT RESERVE OUT."""
        data = struct.pack(">QQ8x", key, other)
        self.run(struct.pack(">BBBxxIx", PERSISTENT_RESERVE_OUT, action, kind, 24), 0, data)

    def reserve_in(self, action: int) -> bytes:
        """PERSISTENT RESERVE IN."""
        return self.run(struct.pack(">BB5xHx", PERSISTENT_RESERVE_IN, action, 4096), 4096)

    def keys(self) -> list[int]:
        """Those that are registered."""
        data = self.reserve_in(0)[8:]
        return [int.from_bytes(data[at : at + 8], "big") for at in range(0, len(data), 8)]

    def port_groups(self) -> dict[int, int]:
        """The state of each group of target ports: 0 is active and optimized, 1 not optimized."""
        data = self.run(struct.pack(">BB4xIxx", MAINTENANCE_IN, 0x0A, 4096), 4096)[4:]
        groups = (data[at : at + 12] for at in range(0, len(data), 12))
        return {int.from_bytes(group[2:4], "big"): group[0] & 15 for group in groups}

    def _bring(self, asked: bytes, task: int, data: bytes) -> None:
        transfer, at, length = (int.from_bytes(asked[n : n + 4], "big") for n in (20, 40, 44))
        number = 0
        end = at + length
        while at < end:
            part = data[at : min(at + 65536, end)]
            flags = 0x80 if at + len(part) == end else 0
            fields = struct.pack(">I12xII4x", transfer, number, at)
            self._send(_DATA_OUT, flags, bytes(8), task, fields, part, at=20)
            at, number = at + len(part), number + 1

    def _send(
        self, kind: int, flags: int, lun: bytes, task: int, rest: bytes, data: bytes, at: int = 20
    ) -> None:
        header = bytearray(48)
        header[0:2] = bytes([kind, flags])
        header[5:8] = len(data).to_bytes(3, "big")
        header[8:16] = lun
        header[16:20] = task.to_bytes(4, "big")
        header[at : at + len(rest)] = rest
        self._socket.sendall(bytes(header[:48]) + data + bytes(-len(data) % 4))

    def _receive(self) -> tuple[bytes, bytes]:
        header = self._exactly(48)
        length = int.from_bytes(header[5:8], "big")
        return header, self._exactly(length + -length % 4)[:length]

    def _exactly(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            got = self._socket.recv(count - len(parts))
            if not got:
                raise ConnectionResetError("the target has closed the connection")
            parts += got
        return bytes(parts)

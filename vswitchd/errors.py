"""Errors that people see: a stable code, what is wrong with what, and what to do next."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """What an error means to the caller; the CLI's exit codes and gRPC statuses follow."""

    INVALID = "invalid"
    NOT_FOUND = "not_found"
    EXISTS = "exists"
    PRECONDITION = "precondition"
    UNSAFE = "unsafe"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    STALE = "stale"
    NO_SPACE = "no_space"
    INTERNAL = "internal"


class VsError(Exception):
    """An error with a stable code (`VS1001`); its text names the object and what to do next."""

    def __init__(self, code: str, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.kind = kind
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

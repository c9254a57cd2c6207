"""The MVSM election, pure: which one SP answers as master, under which term."""

from vswitchd.election.core import (
    LEASE,
    RETRY,
    Activate,
    Activated,
    ControllerStarted,
    Deactivate,
    Effect,
    Event,
    RaiseTerm,
    Refused,
    SpDown,
    SpUp,
    State,
    Tick,
    step,
)

__all__ = [
    "LEASE",
    "RETRY",
    "Activate",
    "Activated",
    "ControllerStarted",
    "Deactivate",
    "Effect",
    "Event",
    "RaiseTerm",
    "Refused",
    "SpDown",
    "SpUp",
    "State",
    "Tick",
    "step",
]

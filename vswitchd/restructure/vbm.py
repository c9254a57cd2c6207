"""VBM: a request and the collected state -> the states that the volume goes through.

The signature first; the rest of the room follows in the next commits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from vswitchd.model.objects import DeviceId, Volume
from vswitchd.model.view import View
from vswitchd.restructure.requests import Request, Stage


def restructure(
    volume: Volume | None,
    views: Sequence[View],
    request: Request,
    new_id: Callable[[], str],
    device_names: Mapping[DeviceId, str] | None = None,
) -> tuple[Stage, ...]:
    """The target states that fulfil the request, in order.

    `views`: of every SP that is up; `new_id`: a fresh random id in hexadecimal at each
    call; `device_names`: what people call devices in layouts, beside their ids.
    """
    raise NotImplementedError

"""Commands that ask for a change of a volume: sent, then shown as a plan or followed to the end."""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Callable
from typing import Any

import typer

from vswitchd.cli import render
from vswitchd.cli.context import Output, context, note, show, usage
from vswitchd.cli.follow import follow
from vswitchd.cli.options import (
    Adaptive,
    DryRun,
    NoWait,
    OutputOption,
    Priority,
    Rate,
    RequestId,
    Timeout,
    rate_of,
)
from vswitchd.cli.render_plan import plan
from vswitchd.errors import Kind, VsError

#: A method of VolumeService, and the fields of its request.
Asked = tuple[str, dict[str, Any]]


def send(
    asked: Asked,
    request_id: RequestId = "",
    dry_run: DryRun = False,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    rate: Rate = "",
    priority: Priority = None,
    adaptive: Adaptive = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Sends a request; shows its plan, or its operation, or follows that to the end."""
    from vswitchd.api import client as api

    method, fields = asked
    request_id = request_id or f"ctl-{uuid.uuid4()}"
    if method != "ApplyPlan":
        fields = {"dry_run": dry_run, **fields}
    elif dry_run:
        raise usage("the plan was shown already: leave --dry-run away, or ask for a new plan")
    options = api.operation_pb2.OperationOptions(
        priority=priority, bytes_per_second=rate_of(rate), adaptive=adaptive
    )
    message = getattr(api.volume_pb2, f"{method}Request")(
        request_id=request_id, options=options, **fields
    )
    try:
        operation = context.client.call(getattr(context.client.volumes, method), message)
    except VsError as error:
        if error.kind is Kind.TIMEOUT and not dry_run:
            note(f"it may have begun; `--request-id {request_id}` asks again for the same one")
        raise
    if dry_run:
        show(operation, output, lambda: plan(operation, device_names()))
    elif no_wait:
        show(operation, output, lambda: render.line(operation.operation_id))
    else:
        follow(operation, timeout, output)


def device_names() -> dict[str, str]:
    """Devices by id."""
    return {device.device_id: device.name for device in context.client.all_devices()}


#: What every mutation takes, after its own words.
_COMMON = list(inspect.signature(send, eval_str=True).parameters.values())[1:]


def mutation(
    app: typer.Typer, name: str | None = None
) -> Callable[[Callable[..., Asked]], Callable[..., None]]:
    """Makes a command of a function that says what to ask for, with the options of `send`."""

    def make(ask: Callable[..., Asked]) -> Callable[..., None]:
        own = list(inspect.signature(ask, eval_str=True).parameters.values())

        def command(**given: Any) -> None:
            common = {each.name: given.pop(each.name) for each in _COMMON}
            send(ask(**given), **common)

        # typer reads a command's options from its signature.
        words = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*own, *_COMMON)]
        command.__signature__ = inspect.Signature(words)  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in words}
        command.__name__ = ask.__name__
        command.__doc__ = ask.__doc__
        app.command(name)(command)
        return command

    return make

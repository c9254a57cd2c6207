"""Options that mean the same everywhere."""

from __future__ import annotations

from typing import Annotated

import typer

from vswitchd.cli.context import Output
from vswitchd.model.layout import parse_size

OutputOption = Annotated[Output, typer.Option("-o", "--output", help="table, json or yaml")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="show the plan; change nothing")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="return the operation's id at once")]
Timeout = Annotated[
    float | None, typer.Option(metavar="SECONDS", help="wait at most so long; it goes on after")
]
RequestId = Annotated[str, typer.Option(help="said twice with the same id, a request happens once")]
Watch = Annotated[bool, typer.Option("--watch", help="look again every two seconds")]
Size = Annotated[int, typer.Option(parser=parse_size, metavar="SIZE", help="20G, 512M, bytes")]

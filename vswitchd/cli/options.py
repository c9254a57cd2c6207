"""Arguments and options that mean the same everywhere."""

from __future__ import annotations

from typing import Annotated

import typer

from vswitchd.cli.context import Output
from vswitchd.model.layout import parse_size

Name = Annotated[str, typer.Argument(metavar="NAME")]
Size = Annotated[int, typer.Option(parser=parse_size, metavar="SIZE", help="20G, 512M, bytes")]
Sp = Annotated[str, typer.Option("--sp", metavar="SP")]
OnSp = Annotated[str, typer.Option("--on", metavar="SP")]
Layout = Annotated[str, typer.Option(help="e.g. 'mirror(sp-a, stripe(2))'")]

OutputOption = Annotated[Output, typer.Option("-o", "--output", help="table, json or yaml")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="show the plan; change nothing")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="return the operation's id at once")]
Timeout = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", min=0, help="wait at most so long; it goes on after"),
]
Rate = Annotated[
    str,
    typer.Option(metavar="SIZE", help="most bytes per second of its copies, like 100M; none: all"),
]
Priority = Annotated[
    int | None, typer.Option(min=0, max=9, help="of copies that wait the highest goes first")
]
Adaptive = Annotated[
    bool | None,
    typer.Option(
        "--adaptive/--no-adaptive", help="copies back off while hosts' latency suffers (default)"
    ),
]
RequestId = Annotated[str, typer.Option(help="said twice with the same id, a request happens once")]
Watch = Annotated[bool, typer.Option("--watch", help="look again every two seconds")]


def rate_of(text: str) -> int:
    """Bytes per second; 0 for no limit."""
    return 0 if text in ("", "0", "none") else parse_size(text)


def noun(help_text: str) -> typer.Typer:
    """The commands of one noun."""
    return typer.Typer(help=help_text, no_args_is_help=True, rich_markup_mode=None)

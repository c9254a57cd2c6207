"""`vswitchd`: the daemons and the quickstart."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from vswitchd import __version__

COMMANDS = {
    "controller": ("vswitchd.controller.app", "run the controller"),
    "sp": ("vswitchd.processor.app", "run a storage processor"),
    "host": ("vswitchd.host.app", "keep a Linux host's volumes attached"),
    "quickstart": ("vswitchd.quickstart", "a controller and three SPs on loopback, to look around"),
    "config": ("vswitchd.config", "check a configuration file"),
}


def usage() -> str:
    """What there is to run."""
    lines = [f"  {name:<12} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["usage: vswitchd COMMAND [OPTIONS]   (--help after a command)", *lines])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; its imports are its own. Returns the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args[:1] == ["--version"]:
        print(f"vswitchd {__version__}")
        return 0
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return 0 if args else 2
    if args[0] not in COMMANDS:
        print(f"vswitchd: there is no command {args[0]!r}\n{usage()}", file=sys.stderr)
        return 2
    command: Callable[[Sequence[str]], int] = import_module(COMMANDS[args[0]][0]).main
    return command(args[1:])


if __name__ == "__main__":
    raise SystemExit(main())

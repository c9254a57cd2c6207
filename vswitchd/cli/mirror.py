"""vswitchctl volume mirror."""

from __future__ import annotations

from typing import Annotated

import typer

from vswitchd.cli.mutation import Asked, mutation
from vswitchd.cli.options import Layout, Name, noun

app = noun("Legs of a mirror.")


@mutation(app)
def add(
    name: Name,
    sp: Annotated[str, typer.Option(metavar="SP", help="where the new leg goes")] = "",
    layout: Layout = "",
) -> Asked:
    """Add a copy of the whole volume."""
    return "AddMirrorLeg", {"name": name, "sp": sp, "layout": layout}


@mutation(app)
def remove(
    name: Name,
    leg: Annotated[str, typer.Option(help="the leg's SP, a T1 id in it, or its number from 0")],
) -> Asked:
    """Take a copy away."""
    return "RemoveMirrorLeg", {"name": name, "leg": leg}


@mutation(app)
def verify(
    name: Name,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="make the legs alike: what most have, or else what the first has"
        ),
    ] = False,
) -> Asked:
    """Hold the legs against each other while hosts use the volume."""
    return "VerifyMirror", {"name": name, "repair": repair}

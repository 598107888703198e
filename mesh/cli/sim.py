"""`mesh sim`: hands everything to mesh.sim.run, which knows its own options."""

from __future__ import annotations

import click


@click.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def sim(args: tuple[str, ...]) -> int:
    """The same kernel in a simulated, faulty world: --seeds N, --jobs J, --replay FILE, --json."""
    from mesh.sim.run import main

    return main(args)

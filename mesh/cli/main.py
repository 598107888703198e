"""The command line: one verb per file or group, each imported when it is used.

Results go to stdout, all else to stderr. A mistake is one line, `error: …`, and one that says what
to do, `hint: …`; never a traceback.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import TracebackType
from typing import Any

import click

from mesh.cli.exits import Exit, exit_of
from mesh.errors import MeshError

VERBS: dict[str, tuple[str, str, str]] = {
    "join": ("provider", "join", "Run a node here: sell, bid, run, serve."),
    "drain": ("provider", "drain", "Empty this node: what runs here goes on elsewhere."),
    "activate": ("provider", "drain", "Open a drained node again."),
    "submit": ("client", "submit", "Bid for compute: run a WASM module somewhere."),
    "ps": ("client", "tasks", "The tasks of this node."),
    "inspect": ("client", "tasks", "All that is known of one task."),
    "wait": ("client", "tasks", "Wait until a task ends."),
    "logs": ("client", "tasks", "What a task wrote to its standard output and error."),
    "get": ("client", "tasks", "Download a task's output."),
    "cancel": ("client", "tasks", "Take a task back."),
    "migrate": ("client", "tasks", "Move a running task to another node."),
    "module": ("client", "modules", "WASM modules: made movable, and what they are made of."),
    "runtime": ("client", "runtime", "Runtimes for programs: python. See what there is, add it."),
    "status": ("network", "network", "This node, now."),
    "peers": ("network", "network", "The peers of this node, and what they sell."),
    "receipts": ("money", "money", "Signed receipts of this node."),
    "audit": ("money", "audit", "Check receipts; with --rerun, run the bills again."),
    "ledger": ("money", "ledger", "The ledger: its state, forks, and entries from elsewhere."),
    "line": ("money", "ledger", "How much a buyer may owe this node; without PEER, all lines."),
    "demo": ("try it", "demo", "Three real nodes, one task, from offer to audit."),
    "devnet": ("try it", "devnet", "A mesh of real nodes on this machine."),
    "sim": ("try it", "sim", "The same kernel in a simulated, faulty world."),
    "key": ("local", "key", "Keys: owners, recovery, rotation, revocation."),
    "fsck": ("local", "fsck", "Check everything on this node's disk, bit by bit."),
    "config": ("local", "config", "Settings, and where each comes from."),
    "doctor": ("local", "doctor", "Is this machine fit? Named checks with fixes."),
    "version": ("local", "version", "The version of mesh and what it stands on."),
}
"""verb → (section of the help, module of mesh.cli, one line)."""


class Root(click.Group):
    """Imports a verb's module only when the verb is used; turns errors into exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"mesh.cli.{VERBS[cmd_name][1]}")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            error.ctx = ctx
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for verb, (section, _, line) in VERBS.items():
            sections.setdefault(section, []).append((verb, line))
        for section, rows in sections.items():
            with formatter.section(section.capitalize()):
                formatter.write_dl(rows)

    def main(self, *args: Any, **extra: Any) -> Any:  # noqa: ANN401  (click's own signature)
        """Run, and leave with one of `Exit`."""
        extra["standalone_mode"] = False
        try:
            outcome = super().main(*args, **extra)
        except MeshError as error:
            _complain(str(error), getattr(error, "hint", ""))
            sys.exit(exit_of(error))
        except click.UsageError as error:
            where = error.ctx.command_path if error.ctx else "mesh"
            _complain(error.format_message(), f"{where} --help")
            sys.exit(Exit.USAGE)
        except click.ClickException as error:
            _complain(error.format_message(), "")
            sys.exit(Exit.USAGE)
        except click.Abort:
            sys.exit(Exit.INTERRUPTED)
        sys.exit(outcome if isinstance(outcome, int) else Exit.OK)


def _complain(why: str, hint: str) -> None:
    click.echo(f"error: {why}", err=True)
    if hint:
        click.echo(f"hint: {hint}", err=True)


def report_fault(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """The last resort for a fault of our own: two lines; the whole story with MESH_DEBUG=1."""
    if os.environ.get("MESH_DEBUG"):
        sys.__excepthook__(kind, error, trace)
        return
    _complain(
        f"mesh itself broke: {kind.__name__}: {error}",
        "this is our fault; MESH_DEBUG=1 shows where, please report it",
    )


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--node", metavar="ADDRESS", help="The node to ask: HOST:PORT or unix:PATH.")
@click.pass_context
def cli(ctx: click.Context, node: str | None) -> None:
    """mesh: a compute market without a centre.

    Exit codes: 0 ok · 1 the task failed · 2 usage · 3 not placed · 4 unreachable ·
    5 not authorised · 6 not verified · 7 not found · 8 quota · 124 time-out · 130 Ctrl-C.
    """
    ctx.obj = node


def main() -> None:
    """The `mesh` command."""
    sys.excepthook = report_fault
    cli.main(prog_name="mesh")

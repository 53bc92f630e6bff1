"""The command line: one module per verb, no logic of its own."""

from __future__ import annotations


def main() -> None:
    """Entry point of the ``mcompress`` command."""
    from compress.cli.interrupts import CODE, end, leave_on_interrupt

    leave_on_interrupt()
    from compress.cli.app import app

    try:
        app(prog_name="mcompress")
    except SystemExit as error:
        if error.code == CODE:
            end()
        raise

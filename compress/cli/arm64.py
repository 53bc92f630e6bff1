"""``mcompress arm64``."""

from __future__ import annotations

from typing import Literal

import typer

from compress.cli.console import guarded, say


@guarded
def arm64(
    action: Literal["setup", "where"] = typer.Argument(
        "where", help="`setup` makes the root; `where` says what is there."
    ),
    mirror: str = typer.Option("", "--mirror", help="A Debian mirror; this system's own if left out."),
    force: bool = typer.Option(False, "--force", help="Make it again although it is there."),
) -> None:
    """Set up what the emulated arm64 targets need: some Debian packages and two wheels, 200 MB, no root privileges."""
    from compress.runtimes.arm64_root import arm64_folder, why_no_arm64
    from compress.runtimes.arm64_setup import set_up_arm64

    if action == "setup":
        made = set_up_arm64(mirror or None, force=force, emit=say)
        print(f"{arm64_folder()}: Python {made['python']}, onnxruntime {made['onnxruntime']}, numpy {made['numpy']}")
    else:
        print(f"{arm64_folder()}: {why_no_arm64() or 'ready'}")

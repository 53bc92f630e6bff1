"""Every command of every page runs, top to bottom, at one desk; a block that cannot run says why."""

from __future__ import annotations

from typing import Any

CODE = "exit code "
AT_THE_DESK = "at the desk"


def test_commands_run(command_page: Any, desk: Any) -> None:
    for block in command_page.blocks():
        if block.marker == AT_THE_DESK:
            exec(compile("\n" * block.line + block.text, str(block.page), "exec"), {"__name__": "example"})
        if block.kind not in ("console", "sh") or block.not_run:
            continue
        assert not block.marker or block.marker.startswith(CODE), block.name
        for line in block.lines():
            desk.run(line, int(block.marker.removeprefix(CODE) or 0))

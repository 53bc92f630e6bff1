"""``mcompress check``."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import typer

from compress.cli.console import JsonOption, guarded, print_json, print_wrapped

if TYPE_CHECKING:
    from compress.checks.finding import Check, Finding

_SHOWN = 3
"""Nodes of one rule that are named; the others are counted."""


@guarded
def check(
    model: str = typer.Argument(..., metavar="FILE|DIR|RUN[:STEP]", help="An .onnx file, or an ONNX artifact."),
    target: str = typer.Option(..., "--target", help="Whose rules: tensorrt."),
    json_: bool = JsonOption,
) -> None:
    """Say what a target would refuse in an ONNX model, or run slowly; exit with 1 if it would refuse the model.

    Nothing of the target needs to be installed.
    """
    from compress.checks.checking import check_model
    from compress.pipeline.onnx_files import find_onnx
    from compress.store import Store

    result = check_model(find_onnx(model, Store.default()), target)
    if json_:
        print_json({"model": model, **result.record()})
    else:
        _print(model, result)
    raise typer.Exit(0 if result.ok else 1)


def _print(model: str, check: Check) -> None:
    """Print the verdict, then the findings by severity and rule."""
    counts = ", ".join(_count(number, severity) for severity, number in check.counts().items() if number)
    verdict = "takes this model" if check.ok else "refuses this model"
    print_wrapped(f"{model}: {check.target} {verdict}; {counts or 'nothing to say about it'}")
    print_wrapped(f"(as the parser of {check.knowledge} judges)")
    for severity in check.counts():
        groups: dict[tuple[str, str], list[Finding]] = defaultdict(list)
        for finding in check.of(severity):
            groups[finding.rule, finding.fix].append(finding)
        for findings in groups.values():
            print()
            _print_group(findings)


def _print_group(findings: list[Finding]) -> None:
    """Print the findings of one rule that share a fix: a reason that they share once, and the first few nodes."""
    first, reasons = findings[0], {finding.reason for finding in findings}
    times = f" ({len(findings)} times)" if len(findings) > 1 else ""
    print(f"{first.severity}: {first.rule}{times}")
    if len(reasons) == 1:
        print_wrapped(first.reason, 2, 2)
    for finding in findings[:_SHOWN]:
        print_wrapped(finding.node if len(reasons) == 1 else f"{finding.node}: {finding.reason}", 4)
    if len(findings) > _SHOWN:
        print(f"    and {len(findings) - _SHOWN} more")
    print_wrapped(f"fix: {first.fix}", 2, 7)


def _count(number: int, severity: str) -> str:
    plural = {"error": "errors", "warning": "warnings", "info": "notes"}
    singular = {"info": "note"}
    return f"{number} {singular.get(severity, severity) if number == 1 else plural[severity]}"

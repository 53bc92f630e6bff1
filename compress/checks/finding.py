"""What a check finds: a rule, how bad it is, where, why, and what helps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
"""Worst first. An error is a refusal by the target's own parser, and nothing else is."""


@dataclass(frozen=True)
class Finding:
    """One thing that a check has to say about a model.

    Attributes:
        rule: name of the rule.
        severity: ``error`` if the target's parser refuses the model for it, ``warning`` if the engine would be slow
            or inaccurate, ``info`` if it is worth knowing.
        node: name of the node, or of the tensor where no node is to blame.
        reason: what is wrong, with the values.
        fix: what to do.
    """

    rule: str
    severity: Severity
    node: str
    reason: str
    fix: str


@dataclass(frozen=True)
class Check:
    """The findings about one model, worst first.

    Attributes:
        target: which linter looked.
        knowledge: the parser and version that its tables come from.
        findings: in the order of severity, then of the rules, then of the graph.
    """

    target: str
    knowledge: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether the target's parser takes the model: there is no error."""
        return not self.of("error")

    def of(self, severity: Severity) -> list[Finding]:
        """Return the findings of one severity."""
        return [finding for finding in self.findings if finding.severity == severity]

    def counts(self) -> dict[Severity, int]:
        """Return how many findings there are of each severity."""
        found = Counter(finding.severity for finding in self.findings)
        return {severity: found[severity] for severity in SEVERITIES}

    def record(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        return {
            "target": self.target,
            "knowledge": self.knowledge,
            "ok": self.ok,
            "counts": self.counts(),
            "findings": [asdict(finding) for finding in self.findings],
        }


def sorted_findings(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return findings worst first, in their order within a severity; exact repetitions once."""
    unique = dict.fromkeys(findings)
    return tuple(sorted(unique, key=lambda finding: SEVERITIES.index(finding.severity)))

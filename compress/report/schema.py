"""The published JSON schema of ``report.json``, and how records of earlier versions are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from compress.report.model import SCHEMA, Report

SCHEMA_ID = f"urn:mcompress:schema:report:{SCHEMA}"
"""A name, not an address: nothing is fetched."""
_DIALECT = GenerateJsonSchema.schema_dialect


def json_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of the version that this mcompress writes."""
    plain = Report.model_json_schema(mode="serialization")
    head = {
        "$schema": _DIALECT,
        "$id": SCHEMA_ID,
        "title": f"mcompress report, version {SCHEMA}",
        "description": (
            "Everything that one run measured. Accuracies, agreements and coefficients of variation are fractions "
            "from 0 to 1, differences are percentage points, sizes and memory are bytes, times say their unit in the "
            "name, intervals are 95 %. What was not measured is null and has a reason."
        ),
    }
    return {**head, **{key: value for key, value in plain.items() if key not in head}}


def schema_text() -> str:
    """Return the schema as the file that is published."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def migrate(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record of an earlier version as one of this version; one of this version as it is."""
    while (step := _STEPS.get(record.get("schema_version", SCHEMA))) is not None:
        record = step(record)
    return record


def _from_1(record: dict[str, Any]) -> dict[str, Any]:
    """Version 2 added fields, all of which may be left out."""
    return {**record, "schema_version": 2}


_STEPS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1}

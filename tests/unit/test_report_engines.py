"""Engines in the report: what an inspector found, in words; without a GPU the reason in its place."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compress.pipeline.engines import engine_records, findings, record
from compress.report.engine_model import Engine, EngineLayers
from compress.report.files import read_report
from compress.report.html import render_html
from compress.report.markdown import render_markdown
from compress.report.model import Report, Step
from compress.report.notes import note_pairs
from compress.report.sections_engines import engines
from compress.report.sections_findings import findings as findings_section

EXAMPLE = Path(__file__).parents[1] / "data" / "report_example.json"
SIDECAR: dict[str, Any] = {
    "library": "tensorrt",
    "version": "11.4.0.106",
    "device": "Fake GPU",
    "compute_capability": "9.0",
    "driver": "13.0",
    "precision": "int8",
    "float_precision": "fp16",
    "tf32": False,
    "refit": False,
    "strip_plan": True,
    "hardware_compatibility": "ampere_plus",
    "timing_cache": {"used": False, "reason": "optimization level 0 reads none", "sha256": None},
    "onnx_sha256": "a" * 64,
    "plan_sha256": "b" * 64,
    "messages": ["warning: something"],
}
FOUND: dict[str, Any] = {
    "layers": 40,
    "detailed": True,
    "precisions": {"int8": 24, "fp16": 8},
    "reformats": 1,
    "casts": 1,
    "quantizers": 0,
    "attention": 6,
    "fused_attention": 6,
    "weights_bytes": 23_000_000,
    "activation_bytes": 4_500_000,
    "profile_activation_bytes": [4_500_000],
    "streamable_bytes": 0,
}
NOTED: dict[str, Any] = {
    "profile": {"input_ids": {"min": [1, 1], "opt": [1, 24], "max": [8, 128]}},
    "seconds": 12.5,
    "bytes": 30_000_000,
}


def built(found: dict[str, Any] | None = None, graph: str = "model", **sidecar: Any) -> Engine:
    noted = NOTED | ({"inspection": found} if found else {"not_inspected": "no GPU"})
    return record("engine", graph, SIDECAR | sidecar, noted)


def test_every_engine_of_every_finished_build_has_a_record() -> None:
    def outcome(status: str, notes: dict[str, Any]) -> Any:
        return SimpleNamespace(status=status, artifact=SimpleNamespace(manifest=SimpleNamespace(notes=notes)))

    noted = NOTED | {"not_inspected": "no GPU"}
    both = SIDECAR | {"engines": {"model": noted, "model@1x16": noted}}
    outcomes = {
        "export": outcome("done", {}),
        "engine": outcome("done", both),
        "broken": SimpleNamespace(status="failed", artifact=None),
    }
    state: Any = SimpleNamespace(
        plan=SimpleNamespace(steps=[SimpleNamespace(id=name) for name in outcomes]), outcomes=outcomes
    )
    found = [(engine.step, engine.shape, engine.not_inspected) for engine in engine_records(state)]
    assert found == [("engine", (), "no GPU"), ("engine", (1, 16), "no GPU")]


@pytest.fixture(scope="module")
def example() -> Report:
    return read_report(EXAMPLE)


def shown(report: Report, *made: Engine) -> str:
    return render_markdown(report.model_copy(update={"engines": made}))


def test_a_record_is_what_the_notes_of_the_step_say() -> None:
    engine = built(FOUND, "model@8x128")
    assert engine.shape == (8, 128)
    assert engine.profile == {"min": (1, 1), "opt": (1, 24), "max": (8, 128)}
    assert engine.options == ("strip_plan", "hardware_compatibility: ampere_plus")
    assert engine.timing_cache == "not used: optimization level 0 reads none"
    assert engine.inspected == EngineLayers(**{key: value for key, value in FOUND.items() if key != "detailed"})
    assert engine.findings == ()


def test_an_inspected_engine_is_one_row_with_its_shares(example: Report) -> None:
    text = shown(example, built(FOUND), built(FOUND, "model@8x128"))
    assert "## What the engine runs" in text
    row = next(line for line in text.splitlines() if "6 of 6 fused" in line)
    for cell in (
        "tensorrt 11.4.0.106",
        "Fake GPU",
        "rest fp16",
        "30.00",
        "int8 24 (75 %), fp16 8 (25 %)",
        "1 layout, 1 type, 0 Q/DQ",
        "6 of 6 fused",
        "23.00",
        "4.50",
    ):
        assert cell in row
    assert "8 × 128" in text
    assert "What the engine runs" in render_html(example.model_copy(update={"engines": (built(FOUND),)}))


def test_without_a_gpu_the_report_says_that_nothing_was_inspected(example: Report) -> None:
    text = shown(example, built(device="built without a GPU"))
    assert "not inspected: no GPU" in text
    assert "int8 24" not in text


def test_what_the_builder_told_is_marked(example: Report) -> None:
    assert "as built" in shown(example, built(FOUND | {"source": "builder"})).partition("What the engine runs")[2]
    assert "(as built)" not in shown(example, built(FOUND))


def test_a_report_without_engines_has_no_such_section(example: Report) -> None:
    assert engines(example.model_copy(update={"engines": ()})) is None


@pytest.mark.parametrize(
    ("found", "sidecar", "said"),
    [
        ({"fused_attention": 0}, {}, "Attention is not fused: 6 of 6 attention blocks run as several kernels."),
        (
            {"fused_attention": 0, "precisions": {"fp32": 32}},
            {"precision": "fp32-strict", "float_precision": "fp32-strict"},
            "Attention is not fused: 6 of 6 attention blocks run as several kernels; kernels for a whole block exist "
            "for FP16, BF16 and INT8.",
        ),
        ({"reformats": 12}, {}, "13 of 40 layers only convert (12 of layout, 1 of type)."),
        ({"precisions": {"int8": 3, "fp16": 29}}, {}, "Only 3 of 32 layers that compute read INT8."),
        (
            {},
            {"float_precision": "fp32-strict"},
            "The layers that are not quantized run in fp32-strict: cast them to FP16, or INT8 gains little.",
        ),
    ],
)
def test_each_finding_is_a_sentence(found: dict[str, Any], sidecar: dict[str, Any], said: str, example: Report) -> None:
    engine = built(FOUND | found, **sidecar)
    assert engine.findings == (said,)
    section = findings_section(example.model_copy(update={"engines": (engine,)}))
    assert section is not None
    assert f"engine: {said}" in section.blocks[0].items  # type: ignore[union-attr]


def test_an_engine_that_only_named_its_layers_is_not_blamed_for_its_types() -> None:
    engine = built(FOUND | {"precisions": {}, "detailed": False})
    assert list(findings(engine, detailed=False)) == []


def test_notes_of_a_build_leave_to_the_section_what_it_shows() -> None:
    step = Step(id="engine", name="build", notes={**SIDECAR, "engines": {"model": NOTED}})
    assert note_pairs(step) == [
        ("TensorRT said", "warning: something"),
        ("ONNX file, sha256", "aaaaaaaaaaaa"),
        ("engine, sha256", "bbbbbbbbbbbb"),
    ]
    old = Step(id="engine", name="build", notes={"library": "tensorrt", "build_seconds": 3.0})
    assert ("library", "tensorrt") in note_pairs(old)

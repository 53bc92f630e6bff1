"""Model cards: the hub's own parser reads them, a person finds the figures, nothing breaks out, no digest changes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from compress.artifact import Artifact, open_artifact
from compress.pipeline.cards import write_card
from compress.report.card import Folder, render_card
from compress.report.files import read_report
from compress.report.model import Report

EXAMPLE = Path(__file__).parents[1] / "data" / "report_example.json"
STEP = "student-int8"
ONNX = Folder("onnx", "model.onnx", ("model.onnx",))


@pytest.fixture(scope="module")
def example() -> Report:
    return read_report(EXAMPLE)


def with_hub(report: Report) -> Report:
    splits = tuple(split.model_copy(update={"hub": "stanfordnlp/sst2"}) for split in report.data.splits)
    subject = report.subject.model_copy(update={"hub": "someone/minilm-sst2"})
    return report.model_copy(update={"subject": subject, "data": report.data.model_copy(update={"splits": splits})})


def rows_of(report: Report, step: str) -> list:
    return [row for row in report.rows if row.step == step and row.accuracy]


def test_the_hubs_parser_reads_every_result(example: Report) -> None:
    card = ModelCard(render_card(with_hub(example), STEP, ONNX))
    data = card.data
    assert data.base_model == "someone/minilm-sst2"
    assert data.to_dict()["base_model_relation"] == "quantized"
    assert (data.library_name, data.pipeline_tag) == ("onnx", "text-classification")
    assert data.datasets == ["stanfordnlp/sst2"]
    assert data.metrics == ["accuracy"]
    assert data.model_name == STEP
    rows = rows_of(example, STEP)
    assert len(data.eval_results) == len(rows) >= 1
    for result, row in zip(data.eval_results, rows, strict=True):
        assert result.task_type == "text-classification"
        assert (result.dataset_type, result.dataset_split) == ("stanfordnlp/sst2", example.data.evaluated)
        assert result.dataset_name
        assert result.metric_type == "accuracy"
        assert result.metric_value == pytest.approx(row.accuracy.value, abs=1e-6)
        assert row.target in result.metric_name
        assert result.source_name.startswith("mcompress")
        assert result.source_url.startswith("urn:sha256:")


def test_what_is_not_on_the_hub_is_not_named_as_if_it_were(example: Report) -> None:
    data = ModelCard(render_card(example, STEP, ONNX)).data
    assert data.base_model is None
    assert data.datasets is None
    assert {result.dataset_type for result in data.eval_results} == {"local"}
    assert not any("$" in result.dataset_name for result in data.eval_results)


@pytest.mark.parametrize(
    ("traits", "relation"),
    [((), None), (("int8",), "quantized"), (("pruned", "distilled"), "finetune"), (("pruned", "int8"), "quantized")],
)
def test_relation_to_the_base_model(example: Report, traits: tuple[str, ...], relation: str | None) -> None:
    steps = tuple(s.model_copy(update={"traits": traits}) if s.id == STEP else s for s in example.steps)
    card = render_card(with_hub(example).model_copy(update={"steps": steps}), STEP, ONNX)
    assert ModelCard(card).data.to_dict().get("base_model_relation") == relation


def test_the_body_has_figures_intervals_limits_and_lineage(example: Report) -> None:
    body = ModelCard(render_card(example, STEP, ONNX)).text
    titles = re.findall(r"^## (.*)$", body, re.MULTILINE)
    assert titles == ["Load it", "Accuracy on test", "Speed, memory and size", "Limits", "How it was made"]
    for words in (
        'compress.load("FOLDER")',
        'InferenceSession("FOLDER/model.onnx")',
        "88.02 % | [85.77, 89.99] | 910 | −0.77 [−2.09, +0.55]",
        "2.59x [2.51, 2.66]",
        "oom: needed 131 MB",
        "The data was generated",
        "unresolved",
        "mcompress run example-sst2.yaml",
    ):
        assert words in body
    for limit in example.limits[:2]:
        assert limit in body
    chain = re.findall(r"^1\. \*\*(.*?)\*\*", body, re.MULTILINE)
    assert chain[0] == "model"
    assert chain[-1] == STEP


@pytest.mark.parametrize(
    ("kind", "files", "words"),
    [
        ("torch", (), "AutoModelForSequenceClassification.from_pretrained"),
        ("torch", ("structure.json",), "compress.load_model"),
        ("openvino", (), "compile_model"),
        ("tensorrt", (), "trtexec --loadEngine"),
    ],
)
def test_each_kind_has_its_loader(example: Report, kind: str, files: tuple[str, ...], words: str) -> None:
    steps = tuple(s.model_copy(update={"kind": kind}) if s.id == STEP else s for s in example.steps)
    converted = "those of the onnx artifact that it was converted from"
    assert converted in render_card(example, STEP, Folder(kind, "model", files))
    assert words in render_card(example.model_copy(update={"steps": steps}), STEP, Folder(kind, "model", files))


def test_texts_stay_texts(example: Report) -> None:
    hostile = "a: [b] # c\n---\n<script>alert(1)</script> | `x` '\""
    steps = tuple(s.model_copy(update={"id": hostile}) if s.id == STEP else s for s in example.steps)
    rows = tuple(
        r.model_copy(update={"step": hostile, "target": hostile}) if r.step == STEP else r for r in example.rows
    )
    subject = example.subject.model_copy(update={"model": hostile})
    other = example.model_copy(update={"steps": steps, "rows": rows, "title": hostile, "subject": subject})
    text = render_card(other, hostile, ONNX)
    card = ModelCard(text)
    assert card.data.model_name == hostile
    assert "<script>" not in card.text.partition("<summary>Reproduce")[0]
    head = text.split("\n---\n")[0].removeprefix("---\n")
    assert yaml.safe_load(head)["model-index"][0]["name"] == hostile
    for block in re.findall(r"(?:^\|.*\n)+", card.text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_a_card_is_no_part_of_the_artifact(
    example: Report, tiny_exported: Callable[..., Artifact], tmp_path: Path
) -> None:
    import shutil

    source = tiny_exported("bert")
    shutil.copytree(source.path, tmp_path / "shipped")
    artifact = open_artifact(tmp_path / "shipped")
    path = write_card(example, STEP, artifact)
    assert path == tmp_path / "shipped" / "README.md"
    again = open_artifact(tmp_path / "shipped")
    assert again.digest == source.digest
    assert "README.md" not in again.manifest.files
    assert ModelCard.load(path).data.model_name == STEP
    assert str(tmp_path) not in path.read_text(encoding="utf-8")
    assert write_card(example, "no such step", artifact) is None

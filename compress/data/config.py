"""The ``data:`` section of a recipe: where examples come from and what to do when splits overlap."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from compress.data.builtin import MAX_ROWS, MIN_ROWS
from compress.data.builtin.digits import NAME as DIGITS
from compress.data.builtin.digits import ROWS

OverlapMode = Literal["error", "drop_from_train", "allow"]
Problem = Literal["single_label", "multi_label", "regression"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)


class Source(_Section):
    """Where one split comes from: exactly one of ``path``, ``hub`` and ``from``. A plain string is a ``path``."""

    path: str | None = Field(
        None,
        description="A .csv, .tsv, .jsonl or .parquet file, a saved `datasets` folder, or images by class.",
    )
    hub: str | None = Field(None, description="Id of a data set on the Hugging Face hub.")
    from_: Literal["train"] | None = Field(None, alias="from", description="Carve the split out of train.")
    name: str | None = Field(None, description="Configuration of the hub data set (`sst2` of `nyu-mll/glue`).")
    split: str | None = Field(
        None, description="Split inside a saved folder or a hub data set; default: this split's own name."
    )
    fraction: float | None = Field(None, gt=0, lt=1, description="With `from`: share of train's rows to carve out.")
    limit: int | None = Field(None, ge=1, description="Keep this many rows: a stratified, seeded sample in file order.")

    @model_validator(mode="after")
    def _one_origin(self) -> Source:
        if sum(origin is not None for origin in (self.path, self.hub, self.from_)) != 1:
            raise ValueError("a source names exactly one of path, hub and from")
        if (self.from_ is None) != (self.fraction is None):
            raise ValueError("from and fraction go together: {from: train, fraction: 0.1}")
        if self.name is not None and self.hub is None:
            raise ValueError("name is the configuration of a hub data set and needs hub")
        if self.split is not None and self.from_ is not None:
            raise ValueError("split chooses within a saved folder or a hub data set, not within train")
        return self


def _expand_shorthand(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


SourceField = Annotated[Source, BeforeValidator(_expand_shorthand)]


DEFAULT_SAMPLES = 256


class Calibration(_Section):
    """The sample of train that calibrators and importance scores read."""

    samples: int | None = Field(
        None,
        ge=0,
        description="Rows drawn from train: stratified by label, seeded, exact; null = 256 or all of a smaller train.",
    )


class Builtin(_Section):
    """A data set that needs no file and no network."""

    name: Literal["support-tickets", "digits"] = Field(
        "support-tickets", description="Generated texts (support-tickets), or 1,797 scanned images (digits)."
    )
    rows: int = Field(
        default_factory=lambda values: ROWS if values.get("name") == DIGITS else 6000,
        ge=MIN_ROWS,
        le=MAX_ROWS,
        description="Rows in all three splits together; default: 6000 texts, or every image.",
    )
    seed: int = Field(0, description="Seed of the generator, or of the split of the images.")

    @model_validator(mode="after")
    def _has_the_rows(self) -> Builtin:
        if self.name == DIGITS and self.rows > ROWS:
            raise ValueError(f"digits has {ROWS} rows")
        return self


class DataConfig(_Section):
    """Where examples come from."""

    train: SourceField | None = Field(None, description="Labelled rows to train on and to draw calibration rows from.")
    validation: SourceField | None = Field(None, description="Labelled rows that every decision reads.")
    test: SourceField | None = Field(None, description="Labelled rows that only the report reads.")
    transfer: SourceField | None = Field(None, description="Unlabelled rows for distillation.")
    calibration: Calibration = Field(default_factory=Calibration, description="The calibration sample.")
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Task column -> column of the files, such as {text: sentence, label: sentiment}; default: equal.",
    )
    labels: tuple[str, ...] | None = Field(
        None, description="Label names in id order; default: the model's, or else train's labels, sorted."
    )
    label_separator: str = Field(",", min_length=1, description="Multi label: what stands between labels in one cell.")
    on_overlap: OverlapMode = Field("error", description="What to do with a text that stands in two splits.")
    seed: int = Field(0, description="Seed of carved splits, `limit` samples and the calibration sample.")
    builtin: Builtin | None = Field(None, description="Use the built-in set instead of train, validation and test.")

    @model_validator(mode="after")
    def _some_rows(self) -> DataConfig:
        given = [name for name in ("train", "validation", "test") if getattr(self, name) is not None]
        if self.builtin is not None and given:
            raise ValueError(f"builtin brings its own splits: remove {', '.join(given)} or builtin")
        if self.builtin is None and not given:
            raise ValueError("name at least one of train, validation and test, or builtin")
        carved = [name for name in given if getattr(self, name).from_ is not None]
        if carved and (self.train is None or "train" in carved):
            raise ValueError(f"{carved[0]} is carved out of train, so train needs a path or a hub id")
        if self.transfer is not None and self.transfer.from_ is not None:
            raise ValueError("transfer needs a path or a hub id: train is used for distillation anyway")
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ValueError("labels names a label twice")
        return self

"""An engine for another library, version or GPU is refused before TensorRT sees it; one that fits is loaded."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from compress.artifact import Artifact, Graph, PassRecord, TensorSpec, create_artifact
from compress.errors import IntegrityError, ModelError
from compress.runtimes import cuda, trt_device, trt_loading
from compress.runtimes.base import Session
from compress.runtimes.trt_device import Device, present_device
from compress.runtimes.trt_loading import load_engine
from compress.runtimes.trt_plan import NO_DEVICE, Here, PlanRecord, read_header, refuse_foreign, write_record
from compress.runtimes.trt_shapes import ByShape, fixed_shapes

HERE = Here("tensorrt", "11.4.0.106", "NVIDIA H100 80GB HBM3", "9.0")
BUILT: dict[str, Any] = {
    "library": "tensorrt",
    "version": "11.4.0.106",
    "device": "NVIDIA H100 80GB HBM3",
    "compute_capability": "9.0",
}


def header(*version: int, tag: bytes = b"ftrt", layout: int = 0) -> bytes:
    return struct.pack("<4sI16x4B", tag, layout, *version)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"version": "11.4.0.99"},  # another build of the same release
        {"version": "11.1.0.3", "version_compatible": True},
        {"version": "10.12.0.36", "version_compatible": True},
        {"device": "NVIDIA H200", "hardware_compatibility": "same_compute_capability"},
        {"device": "NVIDIA A100", "compute_capability": "8.0", "hardware_compatibility": "ampere_plus"},
    ],
)
def test_a_plan_that_fits_is_let_through(changed: dict[str, Any]) -> None:
    refuse_foreign(PlanRecord(**BUILT | changed), b"", HERE)


@pytest.mark.parametrize(
    ("changed", "what", "told", "advice"),
    [
        ({"library": "tensorrt-rtx", "version": "1.7.1"}, "library", "built by tensorrt-rtx 1.7.1", "Install that"),
        ({"version": "11.3.0.14"}, "version", "built by tensorrt 11.3.0.14, here: 11.4.0.106", "again here"),
        ({"version": "11.5.0.1", "version_compatible": True}, "version", "version-compatible", "again here"),
        ({"version": "9.3.0", "version_compatible": True}, "version", "version-compatible", "again here"),
        ({"device": "NVIDIA L4", "compute_capability": "8.9"}, "GPU", "NVIDIA L4 (compute capability 8.9)", "this GPU"),
        ({"device": "NVIDIA H200"}, "GPU", "here: NVIDIA H100 80GB HBM3 (9.0)", "hardware_compatibility"),
        (
            {"device": "L4", "compute_capability": "8.9", "hardware_compatibility": "same_compute_capability"},
            "GPU",
            "8.9",
            "this GPU",
        ),
    ],
)
def test_a_plan_for_another_place_is_refused(changed: dict[str, Any], what: str, told: str, advice: str) -> None:
    with pytest.raises(ModelError) as caught:
        refuse_foreign(PlanRecord(**BUILT | changed), b"", HERE)
    assert caught.value.what == f"This engine is for another {what}."
    assert told in caught.value.value
    assert advice in caught.value.fix


def test_an_older_gpu_cannot_run_what_is_for_ampere_and_later() -> None:
    record = PlanRecord(**BUILT | {"hardware_compatibility": "ampere_plus"})
    with pytest.raises(ModelError, match="another GPU"):
        refuse_foreign(record, b"", HERE._replace(device="Tesla T4", compute_capability="7.5"))


def test_an_rtx_plan_is_finished_where_it_is_loaded() -> None:
    record = PlanRecord(library="tensorrt-rtx", version="1.7.1.116", device="NVIDIA L4", compute_capability="8.9")
    refuse_foreign(record, b"", Here("tensorrt-rtx", "1.7.1.116", "NVIDIA RTX 5090", "12.0"))
    with pytest.raises(ModelError, match="another version"):
        refuse_foreign(record, b"", Here("tensorrt-rtx", "1.8.0.1", "NVIDIA L4", "8.9"))


def test_without_a_record_the_header_is_asked() -> None:
    assert read_header(header(11, 4, 0, 106) + b"more") == ("tensorrt", "11.4.0.106")
    assert read_header(header(1, 7, 1, 116, tag=b"vtrt")) == ("tensorrt-rtx", "1.7.1.116")
    refuse_foreign(None, header(11, 4, 0, 106), HERE)
    with pytest.raises(ModelError) as caught:
        refuse_foreign(None, header(10, 9, 0, 34), HERE)
    assert "its header says tensorrt 10.9.0.34, here: tensorrt 11.4.0.106" in caught.value.value
    with pytest.raises(ModelError, match="another library"):
        refuse_foreign(None, header(1, 7, 1, 116, tag=b"vtrt"), HERE)


@pytest.mark.parametrize(
    "start", [b"", b"PK\x03\x04" * 8, header(11, 4, 0, 106, tag=b"zzzz"), header(11, 4, 0, 106, layout=2)]
)
def test_what_is_no_plan_is_refused_with_advice(start: bytes) -> None:
    assert read_header(start) is None
    with pytest.raises(ModelError) as caught:
        refuse_foreign(None, start, HERE)
    assert "does not begin like a TensorRT plan" in caught.value.what
    assert "build" in caught.value.fix


class FakeTrt:
    """A stand-in for a TensorRT module: it loads plans that begin with ``accepts`` and notes what was done."""

    class ILogger:
        pass

    def __init__(self, version: str = "11.4.0.106", *, accepts: bytes = b"", refits: bool = True) -> None:
        self.__version__, self._accepts, self._refits = version, accepts, refits
        self.done: list[str] = []

    def Runtime(self, logger: Any) -> Any:
        fake = self

        class Runtime:
            engine_host_code_allowed = False

            def deserialize_cuda_engine(self, plan: bytes) -> Any:
                fake.done.append(f"load, host code {'allowed' if self.engine_host_code_allowed else 'not allowed'}")
                if not plan.startswith(fake._accepts):
                    logger.log("Severity.ERROR", "the plan is cut short")
                    return None
                return SimpleNamespace(name="engine")

        return Runtime()

    def Refitter(self, engine: Any, logger: Any) -> Any:
        return SimpleNamespace(refit_cuda_engine=lambda: self.done.append("refit") or self._refits)

    def OnnxParserRefitter(self, refitter: Any, logger: Any) -> Any:
        return SimpleNamespace(refit_from_file=lambda path: self.done.append(f"weights of {Path(path).name}") or True)


@pytest.fixture
def present(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return ``put(name=module, ...)``: these TensorRT modules are installed, beside an H100."""

    def put(**modules: Any) -> None:
        names = [name for name in trt_loading.MODULES if name in modules]
        monkeypatch.setattr(trt_loading, "installed", lambda: names)
        monkeypatch.setattr(trt_loading, "import_module", lambda name: modules[name])
        monkeypatch.setattr(trt_loading, "present_device", lambda: Device("NVIDIA H100 80GB HBM3", "9.0", "13.0"))

    return put


@pytest.fixture
def engine(tmp_path: Path) -> Callable[..., Artifact]:
    """Return ``make(record=None, shapes=())``: an artifact with engines that hold their own name as a plan."""

    def make(record: Mapping[str, Any] | None = None, shapes: tuple[tuple[int, int], ...] = ()) -> Artifact:
        folder = tmp_path / "engine"
        folder.mkdir()
        (folder / "model.onnx").write_bytes(b"onnx")
        graphs = {}
        for shape in ((), *shapes):
            name = "x".join(map(str, shape))
            file = f"model-{name}.engine" if name else "model.engine"
            (folder / file).write_bytes(header(11, 4, 0, 106) + file.encode())
            ids = TensorSpec(name="input_ids", dtype="int64", shape=shape or ("batch", "sequence"))
            graphs[f"model@{name}" if name else "model"] = Graph(file=file, inputs=(ids,), outputs=(ids,))
            if record is not None:
                write_record(folder / file, PlanRecord(**BUILT | dict(record)))
        made_by = PassRecord(name="test", version=1, config={})
        return create_artifact(folder, kind="tensorrt", task={}, graphs=graphs, made_by=made_by)

    return make


def test_the_library_that_built_a_plan_loads_it(engine: Callable[..., Artifact], present: Callable[..., None]) -> None:
    full, rtx = FakeTrt(), FakeTrt("1.7.1.116")
    present(tensorrt=full, tensorrt_rtx=rtx)
    artifact = engine({"library": "tensorrt-rtx", "version": "1.7.1.116", "device": NO_DEVICE})
    assert load_engine(artifact).trt is rtx
    assert (full.done, rtx.done) == ([], ["load, host code not allowed"])


def test_nothing_is_loaded_of_a_plan_that_does_not_fit(
    engine: Callable[..., Artifact], present: Callable[..., None]
) -> None:
    fake = FakeTrt("11.3.0.1")
    present(tensorrt=fake)
    with pytest.raises(ModelError, match="another version"):
        load_engine(engine({}))
    assert fake.done == []


def test_without_a_record_the_module_that_the_header_names_loads_it(
    engine: Callable[..., Artifact], present: Callable[..., None]
) -> None:
    full, rtx = FakeTrt("11.4.0.106"), FakeTrt("1.7.1.116")
    present(tensorrt=full, tensorrt_rtx=rtx)
    artifact = engine()
    assert load_engine(artifact).trt is full
    (artifact.path / "model.engine").write_bytes(header(1, 7, 1, 116, tag=b"vtrt"))
    assert load_engine(artifact).trt is rtx


def test_the_record_must_be_about_this_plan(engine: Callable[..., Artifact], present: Callable[..., None]) -> None:
    present(tensorrt=FakeTrt())
    with pytest.raises(IntegrityError, match="about another engine"):
        load_engine(engine({"plan_sha256": "0" * 64}))


def test_a_record_that_cannot_be_read_says_so(engine: Callable[..., Artifact], present: Callable[..., None]) -> None:
    present(tensorrt=FakeTrt())
    artifact = engine({})
    (artifact.path / "model.engine.json").write_text('{"library": "tensorrt"}', encoding="utf-8")
    with pytest.raises(ModelError) as caught:
        load_engine(artifact)
    assert "model.engine.json" in caught.value.value


def test_what_tensorrt_says_is_passed_on(engine: Callable[..., Artifact], present: Callable[..., None]) -> None:
    present(tensorrt=FakeTrt(accepts=b"whole"))
    with pytest.raises(ModelError) as caught:
        load_engine(engine({}))
    assert caught.value.what == "tensorrt 11.4.0.106 cannot read this engine."
    assert "the plan is cut short" in caught.value.value


def test_host_code_of_an_engine_runs_only_if_that_is_allowed(
    engine: Callable[..., Artifact], present: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeTrt()
    present(tensorrt=fake)
    monkeypatch.delenv(trt_loading.TRUST, raising=False)
    artifact = engine({"version_compatible": True})
    with pytest.raises(ModelError) as caught:
        load_engine(artifact)
    assert "MCOMPRESS_TRUST_ENGINES=1" in caught.value.fix
    assert fake.done == []
    monkeypatch.setenv(trt_loading.TRUST, "1")
    load_engine(artifact)
    assert fake.done == ["load, host code allowed"]


def test_a_plan_without_the_lean_runtime_needs_no_leave(
    engine: Callable[..., Artifact], present: Callable[..., None]
) -> None:
    fake = FakeTrt()
    present(tensorrt=fake)
    load_engine(engine({"version_compatible": True, "exclude_lean_runtime": True}))
    assert fake.done == ["load, host code not allowed"]


def test_weights_come_back_from_the_onnx_file_that_was_built_from(
    engine: Callable[..., Artifact], present: Callable[..., None]
) -> None:
    import hashlib

    fake = FakeTrt()
    present(tensorrt=fake)
    load_engine(engine({"strip_plan": True, "onnx_sha256": hashlib.sha256(b"onnx").hexdigest()}))
    assert fake.done == ["load, host code not allowed", "weights of model.onnx", "refit"]


def test_weights_of_another_onnx_file_are_refused(
    engine: Callable[..., Artifact], present: Callable[..., None]
) -> None:
    fake = FakeTrt()
    present(tensorrt=fake)
    with pytest.raises(IntegrityError, match="without its weights"):
        load_engine(engine({"strip_plan": True, "onnx_sha256": "0" * 64}))
    assert "refit" not in fake.done


def test_a_refit_that_fails_is_an_error(engine: Callable[..., Artifact], present: Callable[..., None]) -> None:
    import hashlib

    present(tensorrt=FakeTrt(refits=False))
    with pytest.raises(ModelError, match="cannot be put back"):
        load_engine(engine({"strip_plan": True, "onnx_sha256": hashlib.sha256(b"onnx").hexdigest()}))


def test_the_real_library_says_why_it_cannot_read_a_plan(
    engine: Callable[..., Artifact], present: Callable[..., None]
) -> None:
    rtx = pytest.importorskip("tensorrt_rtx_bindings")
    present(tensorrt_rtx_bindings=rtx)
    with pytest.raises(ModelError) as caught:
        load_engine(engine({"library": "tensorrt-rtx", "version": rtx.__version__}))
    assert caught.value.what == f"tensorrt-rtx {rtx.__version__} cannot read this engine."
    assert "Error Code" in caught.value.value


class FakeSession(Session):
    def __init__(self, graph: str, opened: list[str]) -> None:
        self.graph, self.closed = graph, False
        opened.append(graph)

    def run(self, batch: Mapping[str, np.ndarray], graph: str = "model") -> dict[str, Any]:
        return {"ran": self.graph}

    def device_ms(self, batch: Mapping[str, np.ndarray], graph: str = "model") -> float | None:
        return {"model": 1.0, "model@1x16": 2.0}.get(self.graph)

    def placement(self) -> dict[str, Any]:
        return {"device": "cuda"}

    def close(self) -> None:
        self.closed = True


def test_the_engine_of_exactly_that_shape_runs_else_the_dynamic_one(engine: Callable[..., Artifact]) -> None:
    artifact, opened = engine({}, ((1, 16), (8, 32))), list[str]()
    fixed = fixed_shapes(artifact.manifest.graphs)
    session = ByShape(lambda graph: FakeSession(graph, opened), fixed)
    assert opened == ["model"]

    def ran(*shape: int) -> Any:
        return session.run({"input_ids": np.zeros(shape, np.int64), "token_type_ids": np.zeros((3, 3))})["ran"]

    assert [ran(8, 32), ran(8, 31), ran(1, 16), ran(8, 32), ran(16, 1)] == [
        "model@8x32",
        "model",
        "model@1x16",
        "model@8x32",
        "model",
    ]
    assert opened == ["model", "model@8x32", "model@1x16"]
    assert session.placement() == {"device": "cuda", "engines": ["model", "model@1x16", "model@8x32"]}
    assert session.device_ms({"input_ids": np.zeros((1, 16), np.int64)}) == 2.0
    assert session.device_ms({"input_ids": np.zeros((2, 16), np.int64)}) == 1.0
    session.close()
    assert all(each.closed for each in session._open.values())  # type: ignore[attr-defined]


def test_engines_for_single_shapes_are_no_more_model(engine: Callable[..., Artifact]) -> None:
    artifact = engine({}, ((1, 16),))
    assert artifact.size_bytes == artifact.manifest.files["model.engine"].bytes
    stripped = artifact.manifest.model_copy(update={"notes": {"strip_plan": True}})
    assert Artifact(artifact.path, stripped).size_bytes == artifact.size_bytes + len(b"onnx")


class FakeDriver:
    def cuDeviceGet(self, handle: Any, index: int) -> int:
        return 0

    def cuDeviceGetName(self, name: Any, size: int, handle: Any) -> int:
        name.value = b"NVIDIA H100"
        return 0

    def cuDeviceGetAttribute(self, value: Any, which: int, handle: Any) -> int:
        value._obj.value = {75: 9, 76: 0}[which]
        return 0

    def cuDriverGetVersion(self, value: Any) -> int:
        value._obj.value = 13010
        return 0


def test_the_device_is_the_one_that_the_driver_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "why_no_cuda", lambda: "")
    monkeypatch.setattr(trt_device.ctypes, "CDLL", lambda name: FakeDriver())
    assert present_device() == Device("NVIDIA H100", "9.0", "13.1")
    monkeypatch.setattr(cuda, "why_no_cuda", lambda: "no GPU")
    assert present_device() == Device(NO_DEVICE, None, None)

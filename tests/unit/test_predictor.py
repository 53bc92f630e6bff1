"""The predictor: what it takes and answers, one shared by many threads, threads of each runtime, what is absent."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compress
from compress.artifact import Artifact, Golden, Graph, PassRecord, create_artifact
from compress.errors import CompressError, DataError, IntegrityError, MissingCapabilityError, ModelError, UsageError
from compress.predictor import Predictor
from compress.runtimes.base import Session
from compress.runtimes.target import Target
from compress.tasks.image_classification import ImageClassification
from compress.tasks.text_classification import TextClassification

TASK = TextClassification(("bad", "fine", "good"), max_length=32)
TEXTS = ["the film was great", "dull", "she was fine and i was good , but the train was slow", "it works .", ""]
MADE = PassRecord(name="test", version=1, config={})
TARGET = Target(name="test", runtime="onnxruntime", threads=1)
RUNTIMES = ("torch", "onnxruntime", "openvino")


@pytest.fixture(scope="module")
def folders(
    tiny_classifier: Callable[..., Path], tiny_exported: Callable[..., Artifact], tmp_path_factory: Any
) -> Mapping[str, Path]:
    """Runtime -> an artifact of the tiny classifier that it opens."""
    from compress.models.golden import golden_torch
    from compress.models.signature import torch_graph

    folder, onnx = tmp_path_factory.mktemp("predictor") / "torch", tiny_exported("bert").path
    shutil.copytree(tiny_classifier("bert"), folder, ignore=shutil.ignore_patterns("artifact.json"))
    graphs, golden = {"model": torch_graph(folder, TASK)}, golden_torch(folder, TASK)
    create_artifact(folder, kind="torch", task=TASK.dump(), graphs=graphs, golden=golden, made_by=MADE)
    return {"torch": folder, "onnxruntime": onnx, "openvino": onnx}


@pytest.fixture(params=RUNTIMES)
def opened(request: pytest.FixtureRequest, folders: Mapping[str, Path]) -> Iterator[Predictor]:
    pytest.importorskip(request.param)
    with compress.load(folders[request.param], runtime=request.param, threads=1) as predictor:
        yield predictor


@pytest.fixture(scope="module")
def predictor(folders: Mapping[str, Path]) -> Iterator[Predictor]:
    with compress.load(folders["onnxruntime"], threads=1) as opened:
        yield opened


class Recorder(Session):
    """Answers with the sum of the ids; remembers the shapes it was given and how many threads were inside at once."""

    def __init__(self, concurrent: bool = False) -> None:
        self.concurrent = concurrent
        self.shapes: list[tuple[int, ...]] = []
        self.inside = self.most = self.closed = 0
        self.arrived, self.go_on, self._lock = threading.Semaphore(0), threading.Event(), threading.Lock()
        self.go_on.set()

    def run(self, batch: Mapping[str, np.ndarray], graph: str = "model") -> dict[str, np.ndarray]:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.arrived.release()
        assert self.go_on.wait(30)
        assert not self.closed
        with self._lock:
            self.inside -= 1
        ids = batch["input_ids"]
        self.shapes.append(ids.shape)
        return {"logits": ids.sum(axis=1, keepdims=True) * np.ones((1, 3), dtype=np.float32)}

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def recorded(tiny_exported: Callable[..., Artifact]) -> Callable[..., tuple[Predictor, Recorder]]:
    def make(**options: Any) -> tuple[Predictor, Recorder]:
        session = Recorder(**options)
        return Predictor(tiny_exported("bert"), TASK, session, TARGET), session

    return make


@pytest.mark.parametrize(
    "several",
    [
        list,
        iter,
        lambda texts: (text for text in texts),
        np.array,
        lambda texts: np.array(texts, dtype=object),
        lambda texts: dict.fromkeys(texts).keys(),
        lambda texts: [{"text": text, "text_pair": None} for text in texts],
    ],
)
def test_several_examples_are_answered_in_their_order(predictor: Predictor, several: Callable[[Any], Any]) -> None:
    alone = [predictor(text) for text in TEXTS]
    assert predictor(several(TEXTS)) == alone
    assert len({answer["score"] for answer in alone}) == len(TEXTS)


def test_one_example_none_and_pairs(predictor: Predictor) -> None:
    assert predictor([]) == []
    assert predictor.logits([]).shape == (0, 3)
    pair = ("the film was great", "not dull")
    assert predictor(pair) == predictor([pair])[0] == predictor({"text": pair[0], "text_pair": pair[1]})
    assert predictor(pair) != predictor(list(pair))[0]
    np.testing.assert_array_equal(predictor.logits("dull"), predictor.logits(["dull"]))


def test_a_long_text_is_cut_to_the_longest_input(predictor: Predictor) -> None:
    words = ["the", "film", "was", "not", "great"] * 20
    fits = " ".join(words[: TASK.max_length - 2])  # beside [CLS] and [SEP]
    assert predictor(" ".join(words)) == predictor(fits) != predictor(" ".join(words[: TASK.max_length - 3]))


def test_many_examples_go_in_windows(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = predictor.logits(TEXTS)
    monkeypatch.setattr("compress.predictor._WINDOW", 2)
    np.testing.assert_array_equal(predictor.logits(iter(TEXTS)), wanted)


@pytest.mark.parametrize(
    ("examples", "words"),
    [
        (["fine", 3], "example 1: int 3"),
        (["fine", None], "example 1: NoneType None"),
        (["fine", float("nan")], "example 1: float nan"),
        ([["a", "b"]], "example 0: list"),
        ([("a", 1)], "example 0: tuple"),
        (["fine", "half \ud800"], "example 1: str"),
        (["fine", {"txt": "a"}], "example 1: dict"),
        ([{"text": "a", "label": "good"}], "example 0: dict"),
        ([{"text_pair": "a"}], "example 0: dict"),
        (("a", "b", "c"), "the example: tuple"),
        (b"bytes", "the example: bytes"),
        (None, "the example: NoneType"),
        (np.array([["a", "b"]]), "the example: ndarray"),
        (np.array("a"), "the example: ndarray"),
    ],
)
def test_what_is_no_example_is_refused_with_its_position(predictor: Predictor, examples: Any, words: str) -> None:
    with pytest.raises(DataError, match=r"not an example for text-classification") as caught:
        predictor(examples)
    assert words in caught.value.value
    assert "several in a list" in caught.value.fix


def test_by_default_every_example_runs_alone_and_batches_are_of_like_length(recorded: Any) -> None:
    predictor, session = recorded()
    wanted = predictor.logits(TEXTS)
    lengths = [shape[1] for shape in session.shapes]
    assert {shape[0] for shape in session.shapes} == {1}
    assert lengths == [6, 3, 15, 5, 2]
    session.shapes.clear()
    np.testing.assert_array_equal(predictor.logits(TEXTS, batch_size=2), wanted)
    assert session.shapes == [(2, 3), (2, 6), (1, 15)]
    for wrong in (0, -1, 1.5, None):
        with pytest.raises(UsageError, match="batch_size"):
            predictor(TEXTS, batch_size=wrong)


def test_batches_change_nothing_but_rounding(opened: Predictor) -> None:
    alone = opened.logits(TEXTS)
    np.testing.assert_array_equal(alone, np.concatenate([opened.logits(text) for text in TEXTS]))
    np.testing.assert_allclose(opened.logits(TEXTS, batch_size=3), alone, atol=1e-4)


def test_scores_of_every_label(predictor: Predictor) -> None:
    from scipy.special import softmax

    chances = softmax(predictor.logits(TEXTS).astype(np.float64), axis=1)
    plain, every = predictor(TEXTS), predictor(TEXTS, scores=True)
    for row, best, answer in zip(chances, plain, every, strict=True):
        assert list(answer["score"]) == list(TASK.labels)
        np.testing.assert_allclose(list(answer["score"].values()), row)
        assert answer["label"] == best["label"] == max(answer["score"], key=answer["score"].get)
        assert best["score"] == answer["score"][best["label"]]
    assert predictor("dull", scores=True) == every[1]


def test_scores_of_other_problems_are_as_predictions_say() -> None:
    outputs = np.array([[2.0, -1.0]], dtype=np.float32)
    several = TextClassification(("bad", "slow"), problem="multi_label")
    assert several.label_scores(outputs) == [several.predictions(outputs)[0]["score"]]
    assert TextClassification((), problem="regression").label_scores(outputs[:, :1]) == [2.0]
    scores = ImageClassification(("a", "b")).label_scores(outputs)
    assert scores == [{"a": pytest.approx(1 / (1 + np.exp(-3))), "b": pytest.approx(1 / (1 + np.exp(3)))}]


def test_images_one_or_several(tiny_images: Callable[..., Path], tmp_path: Path) -> None:
    from compress.models.signature import torch_graph

    task = ImageClassification(TASK.labels)
    folder = Path(shutil.copytree(tiny_images("vit"), tmp_path / "vit", ignore=shutil.ignore_patterns("artifact.json")))
    graphs = {"model": torch_graph(folder, task)}
    create_artifact(folder, kind="torch", task=task.dump(), graphs=graphs, made_by=MADE)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)
    np.save(tmp_path / "one.npy", pixels[0])
    with compress.load(folder, threads=1) as predictor:
        wanted = [predictor(image) for image in pixels]
        assert predictor(pixels) == predictor(list(pixels)) == predictor(tuple(pixels)) == predictor(iter(pixels))
        assert predictor(pixels) == wanted
        assert predictor(tmp_path / "one.npy") == predictor({"image": str(tmp_path / "one.npy")}) == wanted[0]
        assert set(predictor(pixels[0], scores=True)["score"]) == set(TASK.labels)
        for bad in (pixels[0].astype(float) - 1, np.zeros((2, 2, 2), dtype=np.uint8), 7, None, tmp_path / "no.png"):
            with pytest.raises(DataError) as caught:
                predictor([pixels[0], bad])
            assert "example 1" in caught.value.value


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"device": "gpu"}, UsageError, "'cpu' or 'cuda'"),
        ({"threads": 0}, UsageError, "threads=0"),
        ({"threads": "many"}, UsageError, "a whole number from 1"),
        ({"runtime": "torhc"}, UsageError, "'torch'"),
        ({"runtime": "torch"}, UsageError, "onnxruntime opens it"),
        ({"provider": "CPUExecutionProvider", "device": "cuda"}, UsageError, "two devices"),
        ({"provider": "CPUExecutionProvider", "runtime": "openvino"}, UsageError, "is ONNX Runtime's"),
        ({"provider": "CPUExecutionProvide"}, UsageError, "Did you mean 'CPUExecutionProvider'"),
        ({"provider": "AzureExecutionProvider"}, UsageError, "here: CPUExecutionProvider"),
        ({"runtime": "openvino", "device": "cuda"}, MissingCapabilityError, "no device 'cuda'"),
    ],
)
def test_what_it_cannot_be_opened_with(
    folders: Mapping[str, Path], options: dict[str, Any], kind: type[CompressError], words: str
) -> None:
    pytest.importorskip("openvino")
    with pytest.raises(kind) as caught:
        compress.load(folders["onnxruntime"], **options)
    assert words in str(caught.value)


def test_a_provider_is_what_runs_or_an_error(folders: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with compress.load(folders["onnxruntime"], provider="CPUExecutionProvider", threads=1) as predictor:
        assert predictor.target.device == "cpu"
        assert predictor._session.placement()["providers"] == ["CPUExecutionProvider"]
    monkeypatch.setattr("compress.runtimes.cuda._driver", lambda: None)
    for options in ({"provider": "CUDAExecutionProvider"}, {"device": "cuda"}):
        with pytest.raises(MissingCapabilityError) as caught:
            compress.load(folders["onnxruntime"], **options)
        assert "no GPU" in str(caught.value)


def test_the_tokenizer_is_opened_once(folders: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from compress.tasks import text_classification

    count, open_tokenizer = [], text_classification._open_tokenizer
    monkeypatch.setattr(
        text_classification, "_open_tokenizer", lambda folder: count.append(folder) or open_tokenizer(folder)
    )
    with compress.load(folders["onnxruntime"], threads=1) as predictor:
        for text in TEXTS:
            predictor(text)
    assert len(count) == 1


def own_threads() -> int:
    gc.collect()
    return sum(1 for _ in Path("/proc/self/task").iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_threads_of_onnxruntime_and_openvino_are_as_asked(folders: Mapping[str, Path]) -> None:
    before = own_threads()
    for threads in (1, 3):
        with compress.load(folders["onnxruntime"], threads=threads, check=False):
            assert own_threads() == before + threads - 1, "the calling thread works too"
        assert own_threads() == before
    pytest.importorskip("openvino")
    with compress.load(folders["openvino"], runtime="openvino", threads=1, check=False) as predictor:
        assert predictor._session._compiled["model"].get_property("INFERENCE_NUM_THREADS") == 1


def test_threads_of_torch_are_each_predictor_s_own_and_put_back(folders: Mapping[str, Path]) -> None:
    import torch

    before, seen = torch.get_num_threads(), {}
    number = {name: before + i for i, name in enumerate(("first", "second", "dropped"), 1)}
    opened = {name: compress.load(folders["torch"], threads=n, check=False) for name, n in number.items()}
    for name, predictor in opened.items():
        counts = seen[name] = set()
        hook = lambda *_, counts=counts: counts.add(torch.get_num_threads())  # noqa: E731
        for layer in predictor._session._model.modules():
            layer.register_forward_pre_hook(hook)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda i: opened[("first", "second", "dropped")[i % 3]]("dull"), range(60)))
    assert seen == {name: {n} for name, n in number.items()}
    opened["first"].close()
    del opened["dropped"], predictor
    gc.collect()
    assert opened["second"]("dull")["label"] in TASK.labels
    opened["second"].close()
    assert torch.get_num_threads() == before


def test_sessions_that_are_no_good_for_it_are_called_one_at_a_time(recorded: Any) -> None:
    for concurrent, most in ((False, 1), (True, 3)):
        predictor, session = recorded(concurrent=concurrent)
        session.go_on.clear()
        with ThreadPoolExecutor(3) as pool:
            calls = [pool.submit(predictor.logits, text) for text in ("dull", "great", "fine")]
            for _ in range(most):
                assert session.arrived.acquire(timeout=30)
            session.go_on.set()
        assert len({float(call.result()[0, 0]) for call in calls}) == 3
        assert session.most == most


def test_a_closed_predictor_refuses_and_lets_calls_end(recorded: Any) -> None:
    predictor, session = recorded()
    session.go_on.clear()
    with ThreadPoolExecutor(1) as pool:
        inside = pool.submit(predictor.logits, ["dull", "great"])
        assert session.arrived.acquire(timeout=30)
        predictor.close()
        predictor.close()
        assert not session.closed
        for text in ("dull", []):
            with pytest.raises(UsageError, match="closed") as caught:
                predictor(text)
            assert "compress.load" in caught.value.fix
        session.go_on.set()
        assert inside.result().shape == (2, 3)
    predictor.close()
    assert session.closed == 1
    assert "closed" in repr(predictor)


def test_closing_amid_calls_of_other_threads(opened: Predictor) -> None:
    wanted, begun, bad = opened.logits(TEXTS), threading.Barrier(9), []

    def ask() -> None:
        begun.wait()
        try:
            while True:
                if not np.array_equal(opened.logits(TEXTS), wanted):
                    bad.append("another answer")
        except UsageError:
            return
        except BaseException as error:
            bad.append(repr(error))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    begun.wait()
    threading.Event().wait(0.05)
    opened.close()
    for thread in threads:
        thread.join(30)
    assert bad == []


def test_repr_says_what_it_is(predictor: Predictor) -> None:
    text = repr(predictor)
    for word in ("onnx", "text-classification", "'bad', 'fine', 'good'", "onnxruntime on cpu"):
        assert word in text


def test_what_cannot_be_opened_leaves_nothing_open(folders: Mapping[str, Path], tmp_path: Path) -> None:
    import torch

    before = torch.get_num_threads()
    broken = Path(shutil.copytree(folders["torch"], tmp_path / "torch"))
    manifest = compress.open_artifact(broken).manifest
    golden = Golden(
        inputs=manifest.golden.inputs, outputs={"logits": [[9.0, 9, 9]] * len(manifest.golden.outputs["logits"])}
    )
    (broken / "artifact.json").write_text(manifest.model_copy(update={"golden": golden}).model_dump_json())
    with pytest.raises(IntegrityError, match="golden outputs"):
        compress.load(broken, threads=before + 1)
    assert torch.get_num_threads() == before
    cut = Path(shutil.copytree(folders["onnxruntime"], tmp_path / "onnx"))
    (cut / "model.onnx").write_bytes((cut / "model.onnx").read_bytes()[:1000])
    for runtime in ("onnxruntime", "openvino"):
        pytest.importorskip(runtime)
        with pytest.raises(ModelError, match="cannot read this artifact"):
            compress.load(cut, runtime=runtime, check=False)


HIDING = """
import json, sys
from importlib.machinery import PathFinder

class Hiding(PathFinder):
    hidden = set()
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in cls.hidden else super().find_spec(name, path, target)

sys.meta_path = [Hiding if finder is PathFinder else finder for finder in sys.meta_path]
onnx, torch, engine = sys.argv[1:]
Hiding.hidden = {"accelerate", "datasets", "nncf", "onnx", "PIL", "safetensors", "scipy", "torch", "transformers"}
import compress
found = {"answer": compress.load(onnx, threads=1)("dull")["label"]}
if "openvino" not in sys.modules:
    Hiding.hidden |= {"onnxruntime", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"}
    for name in [name for name in sys.modules if name.startswith("onnxruntime")]:
        del sys.modules[name]
cases = {"onnx": (onnx, {}), "provider": (onnx, {"provider": "CPUExecutionProvider"}), "torch": (torch, {}),
         "tensorrt": (engine, {})}
for hide in ((), ("openvino",)):
    Hiding.hidden |= set(hide)
    for name, (folder, options) in cases.items():
        try:
            compress.load(folder, **options)
        except compress.CompressError as error:
            found[" without ".join((name, *hide))] = [type(error).__name__, error.what, error.value, error.fix]
try:
    compress.load(onnx, runtime="openvino")
except compress.CompressError as error:
    found["openvino"] = [type(error).__name__, error.what, error.value, error.fix]
print(json.dumps(found))
"""


def test_what_is_absent_does_not_matter_or_is_named(folders: Mapping[str, Path], tmp_path: Path) -> None:
    here = compress.open_artifact(folders["onnxruntime"]).manifest.graphs["model"]
    engine = tmp_path / "engine"
    engine.mkdir()
    (engine / "model.engine").write_bytes(b"plan")
    graphs = {"model": Graph(file="model.engine", inputs=here.inputs, outputs=here.outputs)}
    create_artifact(engine, kind="tensorrt", task=TASK.dump(), graphs=graphs, made_by=MADE)
    arguments = [str(folder) for folder in (folders["onnxruntime"], folders["torch"], engine)]
    done = subprocess.run([sys.executable, "-c", HIDING, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("answer") in TASK.labels
    assert {kind for kind, *_ in found.values()} == {"MissingCapabilityError"}
    assert "pip install 'mcompress[cpu]'" in found["onnx"][2]
    assert "runtime='openvino'" in found["onnx"][3]
    assert "openvino" not in found["onnx without openvino"][3]
    assert "pip install 'mcompress[cpu]'" in found["provider"][2]
    assert "pip install torch" in found["torch"][2]
    assert "pip install 'mcompress[tensorrt]'" in found["tensorrt"][2]
    assert "pip install 'mcompress[openvino]'" in found["openvino"][2]

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from compress.bench.statistics import paired_difference
from compress.bench.timing_statistics import ratio_of_totals

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def peers(monkeypatch):
    """The benchmark's modules, which import each other by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = ("int8_peers_making", "int8_peers_table", "int8_peers")
    modules = [importlib.import_module(name) for name in names]
    yield modules
    for name in names:
        sys.modules.pop(name)


class Samples:
    """As much of a measurement as a line asks for."""

    def __init__(self, ms):
        self.samples_ms = [[[ms, ms], [1.1 * ms, ms], [ms, 0.9 * ms]]]


def line(table, making, name, role, ms, wrong, n=1000):
    outcomes = np.ones(n)
    outcomes[:wrong] = 0
    base, own = np.ones(n), Samples(ms)
    return table.Line(
        making.Candidate(name, role),
        right=n - wrong,
        n=n,
        difference=paired_difference(base, outcomes),
        speedup=ratio_of_totals(Samples(10.0).samples_ms, own.samples_ms),
        outcomes=outcomes,
        measurement=own,
    )


def test_rivals_are_the_fastest_within_a_point_and_the_most_accurate_above_fp32(peers):
    making, table, _ = peers
    rows = [
        line(table, making, "ours", "ours", 5.0, 0),
        line(table, making, "hasty", "peer", 1.0, 50),
        line(table, making, "quick", "peer", 5.1, 8),
        line(table, making, "careful", "peer", 9.0, 2),
        line(table, making, "slow", "peer", 20.0, 0),
        table.Line(making.Candidate("broken", "peer"), reason="exit code 1"),
    ]
    (claim,) = table.claims(rows)
    assert (claim.fastest, claim.best) == ("quick", "careful")
    assert claim.ratio.value == pytest.approx(5.1 / 5.0)
    assert claim.difference.value == pytest.approx(0.002)
    assert claim.hold


@pytest.mark.parametrize(
    ("ms", "wrong", "as_fast", "as_accurate"),
    [(5.1, 0, True, True), (5.4, 0, False, True), (5.0, 30, True, False)],
)
def test_either_claim_can_fail(peers, ms, wrong, as_fast, as_accurate):
    making, table, _ = peers
    rows = [line(table, making, "ours", "ours", ms, wrong), line(table, making, "rival", "peer", 5.0, 0)]
    (claim,) = table.claims(rows)
    assert (claim.as_fast, claim.as_accurate, claim.hold) == (as_fast, as_accurate, as_fast and as_accurate)


def test_without_a_rival_nothing_is_claimed(peers):
    making, table, _ = peers
    failed = table.Line(making.Candidate("rival", "peer"), reason="exit code 1")
    (claim,) = table.claims([line(table, making, "ours", "ours", 5.0, 0), failed])
    assert not claim.hold
    assert claim.ratio is None


def test_a_failed_command_gives_its_reason_without_folders(peers, tmp_path):
    making, _, _ = peers
    script = tmp_path / "peer.py"
    script.write_text("open('/nowhere/special/file.onnx')")
    with pytest.raises(making.PeerError, match=r"exit code 1: FileNotFoundError.*file\.onnx") as caught:
        making._run([sys.executable, str(script)], tmp_path / "peer.log", 60)
    assert "/nowhere" not in str(caught.value)


def test_a_command_that_takes_too_long_is_ended(peers, tmp_path):
    making, _, _ = peers
    with pytest.raises(making.PeerError, match="not done after"):
        making._run([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "peer.log", 0.2)


def test_every_peer_has_a_script_pinned_requirements_and_its_variants(peers):
    making, _, _ = peers
    for peer, variants in making.PEERS.items():
        source = (making.SCRIPTS / f"{peer}_int8.py").read_text()
        assert all(f'"{variant}"' in source for variant in variants)
        pins = (making.SCRIPTS / f"{peer}_int8.txt").read_text().split()
        assert pins
        assert all("==" in pin for pin in pins)


def test_the_command_on_record_names_no_folder_of_this_machine(peers, tmp_path):
    *_, driver = peers
    given = ["--model", f"{tmp_path}/m", "--data", f"{tmp_path}/d", "--out", f"{tmp_path}/o", "--work", f"{tmp_path}/w"]
    words = [*given, "--ours", f"best={tmp_path}/a"]
    shown = driver._without_folders(words, driver.parse(words))
    assert str(tmp_path) not in shown
    assert shown.endswith("--ours best=DIR/a")

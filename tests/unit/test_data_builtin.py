from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from compress.data.builtin import INTENTS, MAX_ROWS, generate
from compress.data.builtin.generator import tickets
from compress.data.builtin.grammar import FRAMES, SHARES, compose, misspell
from compress.data.builtin.lexicon import REQUESTS
from compress.data.digest import rows_digest
from compress.data.overlap import content_key
from compress.errors import DataError

ROOT = Path(__file__).parents[2]
SMALL_TRAIN_DIGEST = "83e96e300d5cc42b68fdadb0fea9c8583bd968a0625d3775a6ecb7b05267cc28"


@pytest.fixture(scope="module")
def small():
    return generate(600, 0)


def test_the_seed_alone_decides(small):
    assert rows_digest(small["train"]) == SMALL_TRAIN_DIGEST
    assert generate(600, 1) != small


def test_the_rows_do_not_depend_on_the_hash_seed():
    code = (
        "from compress.data.builtin import generate; from compress.data.digest import rows_digest; "
        "print(rows_digest(generate(600, 0)['train']))"
    )
    environment = {"PYTHONHASHSEED": "123", "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert run.stdout.strip() == SMALL_TRAIN_DIGEST


def test_rows_are_unique_balanced_and_disjoint(small):
    rows = [row for split in small.values() for row in split]
    assert len({content_key(row["text"]) for row in rows}) == len(rows) == 600
    assert len(INTENTS) >= 12
    for split in small.values():
        counts = Counter(row["label"] for row in split)
        assert set(counts) == set(INTENTS)
        assert max(counts.values()) - min(counts.values()) <= 2
    assert len(small["train"]) > len(small["test"]) > len(small["validation"])


@pytest.mark.parametrize("rows", [0, MAX_ROWS + 1])
def test_sizes_out_of_range_are_refused(rows):
    with pytest.raises(DataError, match="that many rows"):
        generate(rows)


def test_constructions_have_their_shares():
    drawn = Counter(ticket.construction for ticket in tickets(4000, 7))
    for name, share in SHARES.items():
        assert drawn[name] / 4000 == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("construction", ["correction", "negation", "who"])
def test_only_the_order_tells_which_request_counts(construction):
    frames = FRAMES[construction]
    for first, second in zip(frames[::2], frames[1::2], strict=True):
        assert first != second
        words = [
            sorted(frame.format(wanted=wanted, other=other, person="my son").split())
            for frame in (first, second)
            for wanted, other in (("close my account", "track it"), ("track it", "close my account"))
        ]
        assert all(bag == words[0] for bag in words)


@pytest.mark.parametrize(
    ("one", "other", "pairs"), [("upgrade_plan", "downgrade_plan", 3), ("shop_owes_customer", "customer_owes_shop", 2)]
)
def test_direction_is_told_by_order_alone(one, other, pairs):
    mirrored = [(a.split(), b.split()) for a, b in zip(REQUESTS[one], REQUESTS[other], strict=True)]
    assert all(a != b for a, b in mirrored)
    assert sum(sorted(a) == sorted(b) for a, b in mirrored) == pairs


def test_no_request_belongs_to_two_intents():
    requests = Counter(request for own in REQUESTS.values() for request in own)
    assert max(requests.values()) == 1


def test_upgrades_go_up():
    order = {"basic": 0, "plus": 1, "premium": 2}
    rng = Random(0)
    seen = 0
    for _ in range(200):
        ticket = compose(rng, "upgrade_plan")
        words = ticket.text.lower().replace(".", "").split()
        if ticket.construction == "plain" and "from" in words and "to" in words[words.index("from") :]:
            at = words.index("from") + 2
            to = words.index("to", at) + 2
            if words[at] in order and words[to] in order:
                assert order[words[at]] < order[words[to]]
                seen += 1
    assert seen > 20


def test_a_typo_touches_one_long_word():
    rng = Random(0)
    for _ in range(200):
        before = "please cancel my order"
        after = misspell(rng, before)
        changed = [(a, b) for a, b in zip(before.split(), after.split(), strict=True) if a != b]
        assert len(changed) <= 1
        assert all(len(a) >= 5 and abs(len(a) - len(b)) <= 1 for a, b in changed)
    assert misspell(rng, "do not") == "do not"


def script(folder, name):
    spec = importlib.util.spec_from_file_location(name, ROOT / folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_card_keeps_its_promises(capsys):
    assert script("calibration", "verify_builtin").main([]) == 0
    assert "FAIL" not in capsys.readouterr().out


def test_the_baseline_compares_in_pairs(tmp_path, capsys, monkeypatch):
    pytest.importorskip("sklearn")
    baseline = script("benchmarks", "builtin_baseline")
    monkeypatch.setattr(baseline, "STRENGTHS", (10.0,))
    test = generate(600, 0)["test"]
    answers = tmp_path / "answers.txt"
    answers.write_text("\n".join(row["label"] for row in test))
    arguments = ["--rows", "600", "--predictions", str(answers)]
    assert baseline.main(arguments) == 0
    assert f"model: {len(test)}/{len(test)}" in capsys.readouterr().out
    answers.write_text("\n".join("close_account" for _ in test))
    assert baseline.main(arguments) == 1
    assert "NOT ahead" in capsys.readouterr().out

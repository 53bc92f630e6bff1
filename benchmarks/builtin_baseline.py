"""How far a bag of words gets on the built-in data set, and by how much a model beats it on the same rows.

The baseline is TF-IDF over words and pairs of neighbouring words with a logistic regression; its regularisation is
chosen on validation. All figures are of synthetic text.

    python benchmarks/builtin_baseline.py
    python benchmarks/builtin_baseline.py --model FOLDER             # an artifact, paired on the test split
    python benchmarks/builtin_baseline.py --predictions FILE         # one label per line, in the order of test

Exits with 1 when a model is given and the lower end of its paired interval is not above zero, or the difference is
below --margin points. Needs scikit-learn (dependency group "test").
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from compress.bench.statistics import PairedDifference, paired_difference, wilson_interval
from compress.data.builtin import NAME, generate
from compress.data.splits import Row

STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0)
"""Inverse regularisation strengths that are tried."""


def predict_baseline(splits: dict[str, list[Row]]) -> tuple[list[str], float]:
    """Fit on train, choose the strength on validation, and return the labels predicted for test and the strength."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", sublinear_tf=True)
    texts = {name: [row["text"] for row in rows] for name, rows in splits.items()}
    labels = {name: [row["label"] for row in rows] for name, rows in splits.items()}
    train = vectorizer.fit_transform(texts["train"])
    validation = vectorizer.transform(texts["validation"])
    with threadpool_limits(1):
        fitted = [LogisticRegression(C=c, max_iter=2000).fit(train, labels["train"]) for c in STRENGTHS]
    best = max(fitted, key=lambda model: model.score(validation, labels["validation"]))
    return list(best.predict(vectorizer.transform(texts["test"]))), best.C


def compare(test: Sequence[Row], baseline: Sequence[str], model: Sequence[str]) -> PairedDifference:
    """Return the model's accuracy minus the baseline's, paired over the rows of test."""
    truth = np.array([row["label"] for row in test])
    return paired_difference(np.array(baseline) == truth, np.array(model) == truth)


def predict_model(folder: Path, texts: list[str]) -> list[str]:
    """Return an artifact's label for each text."""
    import compress

    with compress.load(folder) as predictor:
        return [answer["label"] for answer in predictor(texts)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Bag-of-words baseline of the built-in data set.")
    parser.add_argument("--rows", type=int, default=6000, help="rows of the set (default: 6000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the set (default: 0)")
    parser.add_argument("--margin", type=float, default=3.0, help="points that a model must be ahead (default: 3)")
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--model", type=Path, help="artifact folder to compare with")
    given.add_argument("--predictions", type=Path, help="file with one predicted label per line, in the order of test")
    options = parser.parse_args(arguments)

    splits = generate(options.rows, options.seed)
    test = splits["test"]
    baseline, strength = predict_baseline(splits)
    print(f"{NAME} (synthetic), {options.rows} rows, seed {options.seed}: {len(test)} test rows")
    print(f"bag of words, C = {strength:g}: {_accuracy(test, baseline)}")
    if options.model is None and options.predictions is None:
        return 0
    if options.model is not None:
        answers = predict_model(options.model, [row["text"] for row in test])
    else:
        answers = options.predictions.read_text(encoding="utf-8").split()
    if len(answers) != len(test):
        parser.error(f"{len(answers)} predictions for {len(test)} test rows; check --rows and --seed")
    paired = compare(test, baseline, answers)
    ahead = paired.low > 0 and 100 * paired.value >= options.margin
    print(f"model: {_accuracy(test, answers)}")
    print(
        f"difference: {100 * paired.value:+.2f} points, 95 % interval "
        f"{100 * paired.low:+.2f} to {100 * paired.high:+.2f}, McNemar p = {paired.p_value:.2g}"
    )
    print(f"the model is {'ahead' if ahead else 'NOT ahead'} by {options.margin:g} points")
    return 0 if ahead else 1


def _accuracy(test: Sequence[Row], answers: Sequence[str]) -> str:
    right = sum(row["label"] == answer for row, answer in zip(test, answers, strict=True))
    share, low, high = wilson_interval(right, len(test))
    return f"{right}/{len(test)} = {100 * share:.2f} % ({100 * low:.1f} to {100 * high:.1f})"


if __name__ == "__main__":
    sys.exit(main())

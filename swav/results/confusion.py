"""Counts of true and predicted classes, and the numbers that are made of them. Arrays in, numbers out."""

import numpy as np
from jaxtyping import Float64, Int64

Counts = Int64[np.ndarray, "C C"]


def confusion(truth: Int64[np.ndarray, " N"], said: Int64[np.ndarray, " N"], classes: int) -> Counts:
    """Count images, or pixels, by their class (row) and by what they were taken for (column). Classes are below `classes`."""
    return np.bincount(classes * truth + said, minlength=classes**2).reshape(classes, classes)


def recall(counts: Counts) -> Float64[np.ndarray, " C"]:
    """Share of each class's images that are right; nan of a class without images."""
    return _shares(counts, counts.sum(axis=1))


def precision(counts: Counts) -> Float64[np.ndarray, " C"]:
    """Share of what was taken for each class that is right; nan of a class that nothing was taken for."""
    return _shares(counts, counts.sum(axis=0))


def f1(counts: Counts) -> Float64[np.ndarray, " C"]:
    """Harmonic mean of precision and recall; nan of a class that is neither there nor said."""
    return _shares(2 * counts, counts.sum(axis=0) + counts.sum(axis=1))


def top1(counts: Counts) -> float:
    """Share of all images that are right."""
    return float(np.trace(counts) / counts.sum())


def balanced_accuracy(counts: Counts) -> float:
    """Mean recall of the classes that have images: each class counts alike, however many images it has."""
    return float(np.nanmean(recall(counts)))


def macro_f1(counts: Counts) -> float:
    """Mean F1 of the classes that are there or were said."""
    return float(np.nanmean(f1(counts)))


def most_confused(counts: Counts, most: int) -> list[tuple[int, int, int]]:
    """Pairs of a class and what it was taken for, with how often, the most frequent first, of equal ones the first classes."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong.ravel(), kind="stable")[:most]
    pairs = [(*divmod(int(i), len(counts)), int(wrong.flat[i])) for i in order]
    return [pair for pair in pairs if pair[2]]


def _shares(counts: Counts, of: Int64[np.ndarray, " C"]) -> Float64[np.ndarray, " C"]:
    shares = np.full(len(counts), np.nan)
    np.divide(np.diag(counts), of, out=shares, where=of > 0)
    return shares

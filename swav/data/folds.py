"""Folds that keep a group together: all images of a patient, a video or a camera are learned from, or all are scored."""

import numpy as np
from jaxtyping import Int64


def group_folds(
    labels: Int64[np.ndarray, " N"], groups: Int64[np.ndarray, " N"], count: int, seed: int
) -> Int64[np.ndarray, " N"]:
    """Return the number of each image's fold, the same for all images of a group.

    Groups are placed from the largest to the smallest, those of one size in an order drawn by the seed, each where its classes
    are rarest so far: shares of every class, and of all images, come as near to equal as the groups allow.
    (scikit-learn's StratifiedGroupKFold does alike, but refuses fewer groups than folds, and takes two seconds to import.)

    Args:
        labels: classes, as numbers from 0.
        groups: numbers of groups, any.
        count: folds; some stay empty where there are fewer groups.
    """
    _, numbers = np.unique(groups, return_inverse=True)
    held = np.zeros((int(numbers.max(initial=-1)) + 1, int(labels.max(initial=0)) + 1))
    np.add.at(held, (numbers, labels), 1)
    sizes = held.sum(axis=1)
    shares = np.column_stack([held / np.maximum(held.sum(axis=0), 1), sizes / max(1, len(labels))])  # the last: of all
    drawn = np.random.default_rng(seed).permutation(len(held))
    folds, filled = np.empty(len(held), np.int64), np.zeros((count, shares.shape[1]))
    for group in drawn[np.argsort(-sizes[drawn], kind="stable")]:
        folds[group] = np.argmin(np.round(filled @ shares[group], 12))  # of equal ones the first
        filled[folds[group]] += shares[group]
    return folds[numbers]

"""Linear under protocol own: a logistic regression on frozen features, on a data set of one's own.

Data        labelled. With a split for scoring (val/, test/): train to learn from, the other split is scored. Without: five stratified
            folds of all images; each is scored by a layer of the other four.
Transform   short side to 256/224 of the size, centre crop of the size: the network's own (224 of a ResNet for ImageNet). No
            augmentation: every image is seen once.
Layer       global average of the last stage, each feature at mean 0 and standard deviation 1 over the images to learn from;
            multinomial logistic regression with bias.
Optimiser   |W|^2 / 2 + C times the summed cross-entropy, by L-BFGS in float32 (swav/evaluation/logistic.py).
Search      C of 1e-4, .001, .01, .1, 1, 10: the one with most images right over five stratified folds of the images to learn from, of
            equal ones the smallest. Without a split for scoring it is chosen anew within the four folds that each layer learns from: no
            image that is scored has any part in the choice.
Metric      top-1 and, of more than five classes, top-5 [%].
Uncertainty spread: standard deviation (over n - 1) of five values, of layers with the same C that each lack one of five folds of
            train, or of the folds. Interval: Wilson's, 95 %, over the scored images.
Seeds       none: folds are those of seed 0.
Source      ours; the evaluation by logistic regression of Kornblith et al. 2019 (arXiv 1805.08974) and CLIP, with folds in the place
            of a validation set.
A class with fewer images than there are folds is learned from where it can be; where it is not among the images to learn
from, it counts as wrong.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from swav.evaluation import logistic, own
from swav.evaluation.settings import LinearOwnSettings
from swav.evaluation.task import ResourceEstimate, Score, Task
from swav.files import warn
from swav.results.intervals import Groups

# Of one core, for a search and all fits, per image and feature: measured 10 s of 5,000 x 256 and 10 classes, 17 s of 20,000 x 512 and
# 40 (an easier set), 2 s of 800 x 256 and 28. How many steps a layer takes depends on the data.
SECONDS = 4e-6


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer, and how many images were right at each cost when its own was chosen (of a part: nothing was chosen)."""

    layer: logistic.LogisticLayer
    right: dict[float, int]

    def ranked(self, features: Float32[np.ndarray, "M F"]) -> own.Ranked:
        """Classes, likeliest first."""
        return {"": self.layer.ranked(features)}

    def described(self) -> dict[str, Any]:
        """The cost, how it was chosen, and how the layer was solved."""
        found = {"cost": self.layer.cost, "right by cost": {f"{cost:g}": count for cost, count in self.right.items()}}
        return found | {"iterations": self.layer.iterations, "converged": self.layer.converged}


def check(task: Task[LinearOwnSettings]) -> None:
    """Validate settings and labels before any computation.

    Raises:
        ConfigError: images to score are to be drawn where all are scored.
        DataError: too few images of too few classes.
    """
    own.check(task)


def estimate_resources(task: Task[LinearOwnSettings]) -> ResourceEstimate:
    """Estimate resources; in folds there are five searches."""
    images = len(task.train) if task.in_folds else len(task.train) + len(task.val)
    width, searches = task.encoder.num_features, own.FOLDS if task.in_folds else 1
    solving = SECONDS * searches * len(task.train) * width * (1 + task.num_classes / 50)
    return ResourceEstimate(images, solving=solving, memory=4 * 4 * width * images, disk=4 * width * images)


def run(task: Task[LinearOwnSettings]) -> list[Score]:
    """Choose a cost, fit and score.

    Raises:
        ConfigError: images to score are to be drawn where all are scored.
        DataError: no image of a split can be read, or too few of them.
    """
    check(task)
    return own.scores(task, "linear", own.labelled_features(task, "linear"), learner(task.settings))


def learner(settings: LinearOwnSettings) -> own.Learn[Layer]:
    """Return a function that fits a layer to features, labels and groups: at a cost chosen by folds, or at that of a layer of all images."""
    costs = sorted(set(settings.costs))

    def learn(
        features: Float32[np.ndarray, "N F"], labels: Int64[np.ndarray, " N"], groups: Groups, like: Layer | None
    ) -> Layer:
        right = dict[float, int]()
        if like is not None:
            cost = like.layer.cost
        elif len(costs) == 1:
            cost = costs[0]
        else:
            folds = own.folds_of(labels, settings.seed, groups)
            right = dict(zip(costs, logistic.right_by_cost(features, labels, folds, costs).tolist(), strict=True))
            cost = max(costs, key=lambda each: right[each])
        (layer,) = logistic.fit(features, labels, [cost])
        if not layer.converged:
            warn(f"linear: the layer at C={cost:g} is not solved to {logistic.TOLERANCE:g}; its log says so")
        return Layer(layer, right)

    return learn

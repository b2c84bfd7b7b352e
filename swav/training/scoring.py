"""kNN on the way: when it is due, the best score so far, and scores that a signal put off."""

from pathlib import Path
from typing import Any

import torch

from swav import checkpoint, dist
from swav.data.images import Images
from swav.errors import Stopped
from swav.feature_store import FeatureStore
from swav.features import EvaluationView
from swav.files import CHECKPOINTS, METRICS, not_essential
from swav.jsonl import is_metrics, read_if_possible
from swav.metrics import knn_vote, top_k_accuracy
from swav.network.heads import SwavNetwork
from swav.progress import Progress
from swav.signals import StopRequest
from swav.training.log import Log
from swav.training.setup import RunSetup
from swav.weights.encoder import Encoder


class Scoring:
    """The kNN scores of a run.

    Args:
        saved: the checkpoint that the run continues from, or None.

    Attributes:
        best: (step, top-1) of the best score so far.
        put_off: a signal came before or in the evaluation that is due at the last step.
    """

    def __init__(self, run: RunSetup, saved: checkpoint.Checkpoint | None):
        self.run, self._saved = run, saved
        self.best: tuple[int, float] | None = None
        self.put_off = False
        if saved is None:
            return
        if saved.state["best_step"] is not None:
            self.best = saved.state["best_step"], saved.state["best_knn"]
        self.put_off = bool(saved.state.get("unscored"))
        if self.put_off and (top1 := dist.on_rank0(lambda: _scored_late(run.out, saved.step))) is not None:
            self._note(saved.step, top1)
            self.put_off = False
            self._amend()

    def state(self) -> dict[str, Any]:
        """What a checkpoint says of the scores."""
        best_step, best_knn = self.best if self.best is not None else (None, None)
        return {"best_step": best_step, "best_knn": best_knn} | ({"unscored": True} if self.put_off else {})

    def is_best(self, step: int) -> bool:
        return self.best is not None and self.best[0] == step

    def catch_up(self, step: int, network: SwavNetwork, log: Log, progress: Progress, stop: StopRequest) -> None:
        """Make the evaluation that an earlier command put off.

        Raises:
            Stopped: a signal came again. Nothing was saved by this command.
        """
        if code := self.evaluate(step, network, log, progress, stop):
            of_all, message = max(dist.gather_objects((stop.final_code, stop.message())))
            raise Stopped(message, of_all or code)
        if dist.broadcast_object(self.run.labelled is not None):  # labels that are away may be back some day
            self._amend()

    def evaluate(
        self, step: int, network: SwavNetwork, log: Log, progress: Progress, stop: StopRequest, stop_code: int = 0
    ) -> int:
        """Score the network where that is due at the end of an epoch and labels exist.

        On millions of images it takes longer than a scheduler waits for a checkpoint: so a signal puts it off, and the next
        command begins with it.

        Args:
            stop_code: a signal asks all processes for an end already.

        Returns:
            The exit code if the evaluation was put off, else 0.
        """
        run, epoch = self.run, step // self.run.steps_per_epoch
        self.put_off = False
        every = run.recipe.knn_every_epochs
        if not every or not (epoch % max(1, round(every)) == 0 or step == run.total_steps):
            return 0
        scored = None
        if not stop_code:
            checkpoint.require_finite(run.out / CHECKPOINTS, step, network.state_dict())  # or it would be scored
            try:
                scored = score_by_knn(run, network)
            except Stopped:
                stop_code = stop.exit_code
        if scored is not None:
            top1, k = scored
            if not any(line["step"] == step and "knn_top1" in line for line in log.recent):
                log.write({"step": step, "epoch": epoch, "knn_top1": top1})
            progress.say(f"epoch {epoch}: kNN top-1 {top1:.2f} (k={k}, {run.recipe.resolution} pixels)")
            self._note(step, top1)
        if run.labelled is None:  # of the first process, whose word counts
            stop_code = 0
        self.best, stop_code = dist.broadcast_object((self.best, stop_code))
        self.put_off = bool(stop_code)
        return stop_code

    def _note(self, step: int, top1: float) -> None:
        if self.best is None or top1 > self.best[1]:
            self.best = step, top1

    def _amend(self) -> None:
        """Note in the checkpoint the best score as it is after a late evaluation: RUN@best and the export read it there."""
        saved = self._saved
        if saved is None:
            return
        found = {"best_step": self.best[0], "best_knn": self.best[1]} if self.best is not None else {}

        def amend() -> None:
            with not_essential(f"the score of {saved.path}"):
                checkpoint.amend_state(saved.path, {"unscored": False} | found)

        dist.on_rank0(amend)


def score_by_knn(run: RunSetup, network: SwavNetwork) -> tuple[float, int] | None:
    """Return the top-1 of the kNN vote on frozen features [%] and its k, where labels exist; the network is left in train
    mode."""
    if run.labelled is None:
        return None
    bank, queries = run.labelled
    recipe = run.recipe
    assert isinstance(recipe.workers, int)
    network.eval()
    encoder = Encoder(network, recipe, str(run.out))
    view = EvaluationView("centre", recipe.resolution)
    scored = knn_top1(encoder, bank, queries, view, recipe.knn_k, run.device, recipe.workers)
    network.train()
    return scored


def knn_top1(
    encoder: Encoder, train: Images, val: Images, view: EvaluationView, k: int, device: torch.device, workers: int
) -> tuple[float, int]:
    """Return the top-1 of the weighted kNN vote [%], the measure of learning during training, and the k that it is of.

    Args:
        train, val: labelled, with the same classes: the bank, and what is scored.
        k: neighbours; of a bank with fewer readable images, all.
    """
    assert train.labels is not None and val.labels is not None and train.classes is not None
    bank, queries = (
        FeatureStore(encoder, images, view, out=None, device=device, workers=workers).get() for images in (train, val)
    )
    assert bank.pooled is not None and queries.pooled is not None
    labels, truth = torch.from_numpy(train.labels)[bank.kept], torch.from_numpy(val.labels)[queries.kept]
    k = min(k, len(labels))
    ranked = knn_vote(
        bank.pooled.to(device), labels.to(device), queries.pooled.to(device), [k], len(train.classes), ranks=1
    )
    return top_k_accuracy(ranked[k].cpu(), truth, 1), k


def _scored_late(out: Path, step: int) -> float | None:
    """The top-1 of a last step that an earlier command scored after its checkpoint was saved."""
    found = [line.get("knn_top1") for line in read_if_possible(out / METRICS, is_metrics) if line.get("step") == step]
    return next((float(top1) for top1 in found if isinstance(top1, int | float)), None)

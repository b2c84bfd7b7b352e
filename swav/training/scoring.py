"""What a run knows on the way: kNN where there are labels, view retrieval without; the best score so far, the start's, and
scores that a signal put off."""

import contextlib
from collections.abc import Iterator
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
from swav.training.retrieval import Retrieval, RetrievalCheck
from swav.training.setup import RunSetup
from swav.weights.encoder import Encoder

KNN, RETRIEVAL = "knn_top1", "view_retrieval"
HARM_SHARE = 0.2  # of the run in which the score stays below the start's


class Scoring:
    """The scores of a run.

    Args:
        saved: the checkpoint that the run continues from, or None.

    Attributes:
        best: (step, score) of the best so far: kNN top-1, or without labels view retrieval.
        put_off: a signal came before or in the evaluation that is due at the last step.
        ended: why the run ends here (stop_when_worse); None: it does not.
    """

    def __init__(self, run: RunSetup, saved: checkpoint.Checkpoint | None):
        self.run, self._saved = run, saved
        state = {} if saved is None else saved.state
        self.best: tuple[int, float] | None = None
        self._best_by = RETRIEVAL if "best_retrieval" in state else KNN
        if state.get("best_step") is not None:
            self.best = state["best_step"], state["best_retrieval" if self._best_by == RETRIEVAL else "best_knn"]
        self._knn_start: float | None = state.get("knn_start")
        self._below_since: int | None = state.get("below_since")
        self.ended: str | None = state.get("ended")
        self.put_off = bool(state.get("unscored"))
        self._late = KNN if state.get("had_labels", "retrieval" not in state) else RETRIEVAL  # what was put off
        self._check: RetrievalCheck | None = None
        if dist.rank() == 0 and run.recipe.check_every_epochs:
            recipe = run.recipe
            self._check = RetrievalCheck(run.images, recipe.resolution, recipe.seed, state.get("retrieval"))
        if (
            saved is not None
            and self.put_off
            and (score := dist.on_rank0(lambda: _scored_late(run.out, saved.step, self._late))) is not None
        ):
            self._note(saved.step, score, self._late)
            self.put_off = False
            self._amend()

    @property
    def is_fresh(self) -> bool:
        """Whether the run begins with this command: there is no checkpoint yet."""
        return self._saved is None

    @property
    def _measure(self) -> str:
        """What decides which checkpoint is the best. (Of the first process, whose word counts.)"""
        return KNN if self.run.labelled is not None else RETRIEVAL

    def state(self) -> dict[str, Any]:
        """What a checkpoint says of the scores."""
        best_step, score = self.best if self.best is not None else (None, None)
        by_retrieval = self.best is not None and self._best_by == RETRIEVAL
        found: dict[str, Any] = {"best_step": best_step, "best_knn": None if by_retrieval else score}
        optional = {
            "best_retrieval": score if by_retrieval else None,
            "knn_start": self._knn_start,
            "retrieval": self._check.state() if self._check is not None and self._check.has_start else None,
            "below_since": self._below_since,
            "ended": self.ended,
            "unscored": self.put_off or None,
            "had_labels": (self.put_off and self.run.labelled is not None) or None,
        }
        return found | {key: value for key, value in optional.items() if value is not None}

    def is_best(self, step: int) -> bool:
        return self.best is not None and self.best[0] == step

    def exported(self, last: int) -> tuple[int, bool]:
        """The step whose weights are handed on, and whether it is the best instead of the last: where the run did harm."""
        return (self.best[0], True) if self.ended is not None and self.best is not None else (last, False)

    def begin(self, network: SwavNetwork, log: Log, progress: Progress) -> None:
        """Score the weights that the run starts from, which all later scores are compared with.

        A signal leaves out what it interrupts: the run makes a step, saves it, and ends.
        """
        run = self.run
        if dist.rank() == 0:
            with contextlib.suppress(Stopped):
                if self._check is not None:
                    with _evaluating(network):
                        found = self._check.begin(self._encoder(network), run.device)
                    if found is not None:
                        self._write(log, 0, found.line())
                        self._note_start(found.value, RETRIEVAL)
                if run.recipe.knn_every_epochs and (scored := score_by_knn(run, network)) is not None:
                    self._knn_start = scored[0]
                    self._write(log, 0, {KNN: scored[0]})
                    progress.say(f"before the first epoch: kNN top-1 {scored[0]:.2f} (k={scored[1]})")
                    self._note_start(scored[0], KNN)
        self.best = dist.broadcast_object(self.best)

    def _note_start(self, score: float, measure: str) -> None:
        """Given weights may stay the best; fresh ones are no choice."""
        if self.run.recipe.init is not None and measure == self._measure:
            self._note(0, score, measure)

    def catch_up(self, step: int, network: SwavNetwork, log: Log, progress: Progress, stop: StopRequest) -> None:
        """Make the evaluation that an earlier command put off.

        Raises:
            Stopped: a signal came again. Nothing was saved by this command.
        """
        if code := self.evaluate(step, network, log, progress, stop):
            of_all, message = max(dist.gather_objects((stop.final_code, stop.message())))
            raise Stopped(message, of_all or code)
        if dist.broadcast_object(self.run.labelled is not None or self._late == RETRIEVAL):
            self._amend()  # else: labels that are away may be back some day

    @property
    def _can_score(self) -> bool:
        return self.run.labelled is not None or self._check is not None

    def evaluate(
        self, step: int, network: SwavNetwork, log: Log, progress: Progress, stop: StopRequest, stop_code: int = 0
    ) -> int:
        """Score the network with what is due at the end of an epoch, and find out whether the run does harm.

        On millions of images it takes longer than a scheduler waits for a checkpoint: so a signal puts it off, and the next
        command begins with it.

        Args:
            stop_code: a signal asks all processes for an end already.

        Returns:
            The exit code if the evaluation was put off, else 0.
        """
        run, epoch = self.run, step // self.run.steps_per_epoch
        self.put_off = False

        def is_due(every: float) -> bool:
            return bool(every) and (epoch % max(1, round(every)) == 0 or step == run.total_steps)

        check_due, knn_due = is_due(run.recipe.check_every_epochs), is_due(run.recipe.knn_every_epochs)
        if not check_due and not knn_due:
            return 0
        if not stop_code:
            checkpoint.require_finite(run.out / CHECKPOINTS, step, network.state_dict())  # or it would be scored
            try:
                if check_due and self._check is not None:
                    self._retrieve(self._check, step, network, log)
                if knn_due and (scored := score_by_knn(run, network)) is not None:
                    top1, k = scored
                    self._write(log, step, {KNN: top1})
                    start = "" if self._knn_start is None else f", {self._knn_start:.2f} before the first epoch"
                    progress.say(f"epoch {epoch}: kNN top-1 {top1:.2f} (k={k}, {run.recipe.resolution} pixels){start}")
                    self._note(step, top1, KNN)
                    self._judge(step, top1, self._knn_start, "kNN")
            except Stopped:
                stop_code = stop.exit_code
        if not self._can_score:  # of the first process, whose word counts
            stop_code = 0
        self.best, self.ended, stop_code = dist.broadcast_object((self.best, self.ended, stop_code))
        self.put_off = bool(stop_code)
        return stop_code

    def _retrieve(self, check: RetrievalCheck, step: int, network: SwavNetwork, log: Log) -> None:
        with _evaluating(network):
            found: Retrieval | None = check.score(self._encoder(network), self.run.device)
        if found is None:
            return
        self._write(log, step, found.line())
        if self._measure == RETRIEVAL:
            self._note(step, found.value, RETRIEVAL)
            self._judge(step, found.gain, 0.0, "view retrieval")

    def _encoder(self, network: SwavNetwork) -> Encoder:
        return Encoder(network, self.run.recipe, str(self.run.out))

    def _write(self, log: Log, step: int, values: dict[str, float]) -> None:
        """Write a line, unless an earlier command did."""
        if not any(line["step"] == step and values.keys() <= line.keys() for line in log.recent):
            log.write({"step": step, "epoch": step // self.run.steps_per_epoch} | values)

    def _note(self, step: int, score: float, measure: str) -> None:
        if self.best is not None and self._best_by != measure:
            if measure != KNN:  # labels that are away may be back some day
                return
            self.best = None
        if self.best is None or score > self.best[1]:
            self.best, self._best_by = (step, score), measure

    def _judge(self, step: int, score: float, start: float | None, measure: str) -> None:
        """Find out whether the score stays below the start's for so long that the run ends."""
        if start is None or score >= start:
            self._below_since = None
            return
        if self._below_since is None:
            self._below_since = step
        long = step - self._below_since >= HARM_SHARE * self.run.total_steps
        if self.run.recipe.stop_when_worse and long and step < self.run.total_steps:
            best = f"RUN@best is step {self.best[0]}" if self.best is not None else "no better one was saved"
            self.ended = (
                f"{measure} has been below that of the weights at the start since step {self._below_since}; {best}"
            )

    def _amend(self) -> None:
        """Note in the checkpoint the best score as it is after a late evaluation: RUN@best and the export read it there."""
        saved = self._saved
        if saved is None:
            return
        found: dict[str, Any] = {}
        if self.best is not None:
            found["best_step"] = self.best[0]
            found["best_retrieval" if self._best_by == RETRIEVAL else "best_knn"] = self.best[1]

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
    with _evaluating(network):
        encoder = Encoder(network, recipe, str(run.out))
        view = EvaluationView("centre", recipe.resolution)
        return knn_top1(encoder, bank, queries, view, recipe.knn_k, run.device, recipe.workers)


@contextlib.contextmanager
def _evaluating(network: SwavNetwork) -> Iterator[None]:
    """The network in eval mode, and afterwards in train mode, whatever happens."""
    network.eval()
    try:
        yield
    finally:
        network.train()


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


def _scored_late(out: Path, step: int, measure: str) -> float | None:
    """The score of a last step that an earlier command found after its checkpoint was saved."""
    found = [line.get(measure) for line in read_if_possible(out / METRICS, is_metrics) if line.get("step") == step]
    return next((float(score) for score in found if isinstance(score, int | float)), None)

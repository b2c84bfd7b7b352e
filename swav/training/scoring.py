"""What a run knows on the way: kNN where there are labels, view retrieval without; the best score so far, the start's, and
scores that a signal put off."""

import contextlib
import dataclasses
import math
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
from swav.results.intervals import Z
from swav.signals import StopRequest
from swav.training.auto import checked_images
from swav.training.log import Log
from swav.training.retrieval import Retrieval, RetrievalCheck
from swav.training.setup import RunSetup
from swav.weights.encoder import Encoder

KNN, RETRIEVAL = "knn_top1", "view_retrieval"
_NAMES = {KNN: "kNN", RETRIEVAL: "view retrieval"}
HARM_SHARE = 0.2  # of the run in which the score stays below the start's


class Scoring:
    """The scores of a run.

    Args:
        saved: the checkpoint that the run continues from, or None.

    Attributes:
        measure: what says which checkpoint is the best and whether the run does harm: kNN top-1, or where there were no labels when
            the run began view retrieval.
        best: (step, score) of the best so far.
        put_off: a signal came before or in the evaluation that is due at the last step.
        ended: why the run ends here (stop_when_worse); None: it does not.
    """

    def __init__(self, run: RunSetup, saved: checkpoint.Checkpoint | None):
        self.run, self._saved = run, saved
        state = {} if saved is None else saved.state
        self.measure: str = state.get("measure", KNN)
        self.best: tuple[int, float] | None = None
        if state.get("best_step") is not None:
            self.best = state["best_step"], state["best_knn" if self.measure == KNN else "best_retrieval"]
        self._knn_start: float | None = state.get("knn_start")
        self._below_since: int | None = state.get("below_since")
        self.ended: str | None = state.get("ended")
        self.put_off = bool(state.get("unscored"))
        self._view = [run.recipe.resolution, run.recipe.knn_k]  # scores of another one cannot be compared
        its = state.get("retrieval")
        if state.get("view", self._view) != self._view:
            dist.say(
                "eval_size or knn_k changed: the scores of the weights at the start are of another view, and are not compared with"
            )
            its, self._knn_start, self._below_since = None, None, None
        self._check: RetrievalCheck | None = None
        if dist.rank() == 0 and run.recipe.check_every_epochs:
            recipe, count = run.recipe, checked_images(run.recipe, len(run.images))
            self._check = RetrievalCheck(run.images, recipe.resolution, recipe.seed, count, its)
        if saved is not None and self.put_off:
            self._take_late_score(saved.step)

    def _take_late_score(self, step: int) -> None:
        """Take over the score of a last step that an earlier command found after its checkpoint was saved, if it did."""
        line = dist.on_rank0(lambda: _line_of(self.run.out, step, self.measure))
        if line is not None:
            score, margin = line[self.measure], line.get(f"{self.measure}_margin", 0.0)
            self._note(step, score, self.measure)
            gain = line.get("view_retrieval_gain") if self.measure == RETRIEVAL else self._knn_gain(score)
            self._judge(step, gain, margin, self.measure)
            self.put_off = False
            self._amend()

    def state(self) -> dict[str, Any]:
        """What a checkpoint says of the scores."""
        best_step, score = self.best if self.best is not None else (None, None)
        by_knn = self.measure == KNN
        found: dict[str, Any] = {"measure": self.measure, "view": self._view, "best_step": best_step}
        found |= {"best_knn": score if by_knn else None, "best_retrieval": None if by_knn else score}
        optional = {
            "knn_start": self._knn_start,
            "retrieval": self._check.state() if self._check is not None and self._check.has_start else None,
            "below_since": self._below_since,
            "ended": self.ended,
            "unscored": self.put_off or None,
        }
        return found | {key: value for key, value in optional.items() if value is not None}

    def is_best(self, step: int) -> bool:
        return self.best is not None and self.best[0] == step

    @property
    def harm(self) -> str | None:
        """Why the weights at the start are, by `measure`, better than the last; None where they are not, or start fresh."""
        if self.ended is None and (self._below_since is None or not self.run.recipe.stop_when_worse):
            return None
        return self.ended or f"{_NAMES[self.measure]} is below that of the weights at the start"

    def exported(self, last: int) -> tuple[int, bool]:
        """The step whose weights are handed on, and whether it is the best instead of the last: where the run did harm."""
        return (self.best[0], True) if self.harm is not None and self.best is not None else (last, False)

    @property
    def is_fresh(self) -> bool:
        """Whether the run begins with this command: there is no checkpoint yet."""
        return self._saved is None

    def begin(self, network: SwavNetwork, log: Log, progress: Progress) -> None:
        """Score the weights that the run starts from, which all later scores are compared with.

        Raises:
            Stopped: a signal asks for an end. No step is lost, as none was made: the next command begins anew.
        """
        stopped: tuple[str, int] | None = None
        if dist.rank() == 0:
            try:
                self._score_start(network, log, progress)
            except Stopped as asked:
                stopped = str(asked), asked.exit_code
        self.measure, self.best, stopped = dist.broadcast_object((self.measure, self.best, stopped))
        if stopped is not None:
            raise Stopped(*stopped)

    def _score_start(self, network: SwavNetwork, log: Log, progress: Progress) -> None:
        run, scores = self.run, dict[str, float]()
        if self._check is not None:
            with _evaluating(network):
                found = self._check.begin(self._encoder(network), run.device)
            if found is not None:
                self._write(log, 0, found.line())
                scores[RETRIEVAL] = found.value
        if run.recipe.knn_every_epochs and (vote := score_by_knn(run, network)) is not None:
            self._write(log, 0, vote.line())
            progress.say(f"before the first epoch: kNN top-1 {vote.top1:.2f} (k={vote.k})")
            scores[KNN] = self._knn_start = vote.top1
        self.measure = RETRIEVAL if KNN not in scores and RETRIEVAL in scores else KNN
        if (
            run.recipe.init is not None and self.measure in scores
        ):  # given weights may stay the best; fresh ones are no choice
            self.best = 0, scores[self.measure]

    def catch_up(self, step: int, network: SwavNetwork, log: Log, progress: Progress, stop: StopRequest) -> None:
        """Make the evaluation that an earlier command put off.

        Raises:
            Stopped: a signal came again. Nothing was saved by this command.
        """
        if code := self.evaluate(step, network, log, progress, stop):
            of_all, message = max(dist.gather_objects((stop.final_code, stop.message())))
            raise Stopped(message, of_all or code)
        if dist.broadcast_object(self.run.labelled is not None or self.measure == RETRIEVAL):
            self._amend()  # else: labels that are away may be back some day

    @property
    def _can_score(self) -> bool:
        return self.run.labelled is not None or (self._check is not None and self._check.has_start)

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
                if check_due and self._check is not None and self._check.has_start:
                    self._retrieve(self._check, step, network, log)
                if knn_due and (vote := score_by_knn(run, network)) is not None:
                    self._write(log, step, vote.line())
                    start = "" if self._knn_start is None else f", {self._knn_start:.2f} before the first epoch"
                    progress.say(
                        f"epoch {epoch}: kNN top-1 {vote.top1:.2f} (k={vote.k}, {run.recipe.resolution} pixels){start}"
                    )
                    self._note(step, vote.top1, KNN)
                    self._judge(step, self._knn_gain(vote.top1), vote.margin, KNN)
            except Stopped:
                stop_code = stop.exit_code
        if not self._can_score:  # of the first process, whose word counts
            stop_code = 0
        self.best, self.ended, self._below_since, stop_code = dist.broadcast_object(
            (self.best, self.ended, self._below_since, stop_code)
        )
        self.put_off = bool(stop_code)
        return stop_code

    def _retrieve(self, check: RetrievalCheck, step: int, network: SwavNetwork, log: Log) -> None:
        with _evaluating(network):
            found: Retrieval | None = check.score(self._encoder(network), self.run.device)
        if found is not None:
            self._write(log, step, found.line())
            self._note(step, found.value, RETRIEVAL)
            self._judge(step, found.gain, found.margin, RETRIEVAL)

    def _knn_gain(self, top1: float) -> float | None:
        return None if self._knn_start is None else top1 - self._knn_start

    def _encoder(self, network: SwavNetwork) -> Encoder:
        return Encoder(network, self.run.recipe, str(self.run.out))

    def _write(self, log: Log, step: int, values: dict[str, float]) -> None:
        """Write a line, unless an earlier command did."""
        if not any(line["step"] == step and values.keys() <= line.keys() for line in log.recent):
            log.write({"step": step, "epoch": step // self.run.steps_per_epoch} | values)

    def _note(self, step: int, score: float, measure: str) -> None:
        if measure == self.measure and (self.best is None or score > self.best[1]):
            self.best = step, score

    def _judge(self, step: int, gain: float | None, margin: float, measure: str) -> None:
        """Find out whether the score stays below the start's, by more than chance, for so long that the run ends."""
        if measure != self.measure:
            return
        if gain is None or gain >= -margin:
            self._below_since = None
            return
        if self._below_since is None:
            self._below_since = step
        long = step - self._below_since >= HARM_SHARE * self.run.total_steps
        if self.run.recipe.stop_when_worse and long and step < self.run.total_steps:
            best = f"RUN@best is step {self.best[0]}" if self.best is not None else "no better one was saved"
            self.ended = f"{_NAMES[measure]} has been below that of the weights at the start since step {self._below_since}; {best}"

    def _amend(self) -> None:
        """Note in the checkpoint the scores as they are after a late evaluation: the next command and RUN@best read them there."""
        saved = self._saved
        if saved is None:
            return
        values = self.state() | {"unscored": False}

        def amend() -> None:
            with not_essential(f"the score of {saved.path}"):
                checkpoint.amend_state(saved.path, values)

        dist.on_rank0(amend)


@dataclasses.dataclass(frozen=True)
class Vote:
    """A kNN score.

    Attributes:
        top1: [%].
        k: neighbours.
        margin: half of the 95 % interval of a difference of two such scores over other images [points]; over the same ones, as
            here, it is narrower.
    """

    top1: float
    k: int
    margin: float

    def line(self) -> dict[str, float]:
        """As a line of metrics.jsonl has it."""
        return {KNN: self.top1, f"{KNN}_margin": self.margin}


def score_by_knn(run: RunSetup, network: SwavNetwork) -> Vote | None:
    """Score by the kNN vote on frozen features, where labels exist; the network is left in train mode."""
    if run.labelled is None:
        return None
    bank, queries = run.labelled
    recipe = run.recipe
    assert isinstance(recipe.workers, int)
    with _evaluating(network):
        encoder = Encoder(network, recipe, str(run.out))
        view = EvaluationView("centre", recipe.resolution)
        top1, k = knn_top1(encoder, bank, queries, view, recipe.knn_k, run.device, recipe.workers)
    share = top1 / 100
    return Vote(top1, k, 100 * Z * math.sqrt(2 * share * (1 - share) / len(queries)))


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


def _line_of(out: Path, step: int, measure: str) -> dict[str, Any] | None:
    """The line of a step's score in metrics.jsonl, if there is one."""
    lines = read_if_possible(out / METRICS, is_metrics)
    return next(
        (line for line in lines if line.get("step") == step and isinstance(line.get(measure), int | float)), None
    )

"""Health of a run: what is logged every step, and a verdict.

All values are computed on the device and read by the host a step later, so that watching costs no synchronisation.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from swav.metrics import rankme
from swav.tensors import require_same_form

STEP_VALUES = ("loss", "code_entropy", "code_confidence", "gradient_norm")
_CHECK_KEYS = ("view_retrieval", "view_retrieval_gain", "view_retrieval_margin")
_LEAST_SHARE = 0.25  # of random weights' view retrieval: runs that gained less were no better by kNN (docs/log.md)
_CEILING = 98.0  # of view retrieval [%]: where both are above, no gain can be seen
RANDOM = "random weights"  # what fresh weights are called
SURE_AFTER = 50  # lines of metrics: before, a run that has not left its start is not judged


@torch.no_grad()
def code_statistics(codes: Sequence[Float[Tensor, "A B _"]]) -> tuple[Tensor, Tensor]:
    """Mean entropy of a sample's code [nats], and mean of its largest entry; over all sets of prototypes."""
    entropy = torch.stack([-torch.xlogy(part, part).sum(dim=-1).mean() for part in codes])
    return entropy.mean(), torch.stack([part.amax(dim=-1).mean() for part in codes]).mean()


class Monitor:
    """Counts which prototypes are used and keeps recent embeddings, on the device, between two lines of the log.

    Args:
        prototypes: K, of all sets together.
        dim: D.
        device: where codes and embeddings are.
        recent: embeddings kept for the effective rank and the spread.
    """

    def __init__(self, prototypes: int, dim: int, device: torch.device, recent: int = 1024):
        self.usage = torch.zeros(prototypes, device=device)
        self.usage_before = torch.zeros_like(self.usage)
        self.recent = torch.zeros(0, dim, device=device)
        self.capacity = max(recent, 4 * dim)
        self.window = 0

    @torch.no_grad()
    def watch(self, embeddings: Float[Tensor, "V B D"], codes: Sequence[Float[Tensor, "A B _"]]) -> None:
        """Take note of one step. The usage covers the last 10 to 20 samples per prototype, once there were so many.

        (It is counted in windows of 10, of which the last whole one counts too: started afresh, it would say for a while
        that few prototypes are in use.)
        """
        if self.window > 10 * len(self.usage):
            self.usage_before, self.usage, self.window = self.usage, torch.zeros_like(self.usage), 0
        before = 0
        for part in codes:
            chosen = part[0].argmax(dim=-1) + before
            self.usage.index_add_(0, chosen, torch.ones_like(chosen, dtype=self.usage.dtype))
            before += part.shape[-1]
        self.window += codes[0].shape[1]
        self.recent = torch.cat([embeddings[0].detach().float(), self.recent])[: self.capacity]

    def state_dict(self) -> dict[str, Tensor]:
        """What the next values depend on."""
        return {
            "monitor/usage": self.usage,
            "monitor/usage_before": self.usage_before,
            "monitor/window": torch.tensor(self.window),
            "monitor/recent": self.recent,
        }

    def load_state_dict(self, state: Mapping[str, Tensor], where: str) -> None:
        """Take a state over. One that is not there (older checkpoints, more processes than before) is begun anew.

        Args:
            state: of `state_dict`; other names beside are left alone.
            where: the file, for messages.

        Raises:
            CheckpointError: a tensor is missing or unexpected, or of another shape or type.
        """
        found = {name: value for name, value in state.items() if name.startswith("monitor/")}
        if not found:
            return
        expected = self.state_dict()
        recent = found.get("monitor/recent", self.recent)
        if recent.shape[:1] and len(recent) <= self.capacity:  # of any length up to its capacity
            expected["monitor/recent"] = self.recent.new_empty(len(recent), self.recent.shape[1])
        require_same_form(where, found, expected)
        self.usage.copy_(found["monitor/usage"])
        self.usage_before.copy_(found["monitor/usage_before"])
        self.window = int(found["monitor/window"])
        self.recent = torch.empty_like(recent, device=self.recent.device).copy_(recent)  # aligned as torch's own memory

    def summary(self) -> dict[str, float]:
        """Share of prototypes in use, effective rank and spread of recent embeddings. Synchronises with the device."""
        spread = (
            self.recent.std(dim=0).mean() * math.sqrt(self.recent.shape[1]) if len(self.recent) > 1 else torch.zeros(())
        )
        return {
            "prototypes_used": float((self.usage + self.usage_before > 0).float().mean()),
            "rankme": rankme(self.recent) if len(self.recent) > 1 else 0.0,
            "embedding_std": float(spread),
        }


class HealthCheck:
    """Judge a run while it trains, and warn where the judgement changes.

    Args:
        ln_k, images, prototypes, start: as for `verdict`.
    """

    def __init__(self, ln_k: float, images: int, prototypes: int, start: str = RANDOM):
        self.facts = ln_k, images, prototypes, start
        self.state = "healthy"

    def catch_up(self, history: Sequence[Mapping[str, float | None]]) -> None:
        """Bring the judgement to where it was after a run's lines so far, so that a resumed run does not repeat itself."""
        steps = [place for place, line in enumerate(history, start=1) if "loss" in line]
        first = len(steps) - 1 if len(steps) >= SURE_AFTER else 0  # early on, a judgement may give way to "too early"
        for length in steps[first:]:
            self.news(history[:length])

    def news(self, history: Sequence[Mapping[str, float | None]]) -> str | None:
        """The verdict and its advice, where it is another than the last time; else None."""
        state, advice = verdict(history, *self.facts)
        if state in ("too early", self.state):
            return None
        self.state = state
        return f"{state}: {advice}"


def too_few(images: int, prototypes: int) -> str | None:
    """What is to be said of a run with fewer images than prototypes; None of any other."""
    if images >= prototypes:
        return None
    return (
        f"{images} images cannot fill {prototypes} prototypes, and so few cannot tell whether training works: the loss says "
        "only that nothing broke. Add images, or start from weights that saw more (init=W), and judge by a benchmark"
    )


def verdict(
    history: Sequence[Mapping[str, float | None]],
    ln_k: float,
    images: int,
    prototypes: int,
    start: str = RANDOM,
    ended: bool = False,
    harm: str | None = None,
) -> tuple[str, str]:
    """Judge a run by its last lines of metrics.

    Args:
        history: lines of metrics.jsonl.
        ln_k: the loss of uniform codes, Recipe.log_prototypes [nats].
        images: that are trained on.
        prototypes: of the largest set.
        start: what the weights at the start are called.
        ended: the run is over; on the way nothing is said of what may still be learned.
        harm: why the weights at the start are better than the last, where they are given ones and it is so.

    Returns:
        One of healthy, collapsing, too few images, prototypes dying, did harm, not learning, data-bound, too early; and the evidence, or
        the advice that the literature gives.

    Source of the advice: README "Common issues" and tracker of the original (reference: collapse at loss = ln K).
    """
    lines = [line for line in history if "loss" in line]
    knows, evidence = learned(history, start) if ended or harm is not None else (None, "")  # on the way not asked for
    if harm is not None:
        return (
            "did harm",
            f"{harm}. {evidence}. The best weights are exported; keep {start}, or try a lower backbone_lr_factor",
        )
    if len(lines) < 5 and not (ended and knows is False):
        return "too early", "fewer than five lines of metrics"
    recent = lines[-max(5, len(lines) // 10) :]
    mean = {
        key: _mean([line.get(key) for line in recent])
        for key in ("loss_gap", "embedding_std", "prototypes_used", "data_wait")
    }
    at_start = len(lines) < SURE_AFTER
    still = mean["loss_gap"] < 0.02 * ln_k or mean["embedding_std"] < 0.05
    if still and at_start:
        return "too early", f"the loss has not left ln K = {ln_k:.2f} yet"
    if still:
        return "collapsing", (
            f"the loss stays at ln K = {ln_k:.2f} or embeddings are all alike: lower epsilon (0.03), "
            "freeze prototypes longer, lower the learning rate, or start the queue later"
        )
    if (why := too_few(images, prototypes)) is not None:
        return "too few images", why
    if not at_start and mean["prototypes_used"] < 0.2:
        return (
            "prototypes dying",
            "few prototypes are ever chosen: fewer prototypes, a longer queue, or a smaller epsilon",
        )
    if knows is False and ended and _rises(history):
        return "too early", f"{evidence}, and it rises: train longer"
    if knows is False and ended:
        more = "or start from weights that saw more (init=W)" if start == RANDOM else f"or keep {start}"
        return "not learning", f"{evidence}. Train longer, use more images, change koleo (0.1 to 0.3) or lr, {more}"
    if mean["data_wait"] > 0.3:
        return (
            "data-bound",
            f"{mean['data_wait']:.0%} of the time goes into waiting for images: more workers, or smaller files",
        )
    return (
        "healthy",
        f"the loss is {mean['loss_gap']:.2f} below ln K, {mean['prototypes_used']:.0%} of prototypes are in use"
        + (f"; {evidence}" if evidence else ""),
    )


def _rises(history: Sequence[Mapping[str, float | None]]) -> bool:
    """Whether view retrieval was better at the last check than at the one before, by more than chance."""
    values = [line["view_retrieval_gain"] or 0.0 for line in history if line.get("view_retrieval_gain") is not None]
    margins = [
        line.get("view_retrieval_margin") or 0.0 for line in history if line.get("view_retrieval_gain") is not None
    ]
    return len(values) > 2 and values[-1] - values[-2] > math.hypot(margins[-1], margins[-2])


def learned(history: Sequence[Mapping[str, float | None]], start: str) -> tuple[bool | None, str]:
    """Find out whether more is known than at the start: by kNN where there are labels, else by view retrieval.

    Returns:
        Whether it is, None where nothing was measured yet; and the evidence as text.
    """
    scored = [line for line in history if line.get("knn_top1") is not None]
    before = [line["knn_top1"] for line in scored if line["step"] == 0]
    checks = [line for line in history if line.get("view_retrieval_gain") is not None and line["step"]]
    words = []
    knows: bool | None = None
    if checks:
        value, gain, margin = (checks[-1][key] or 0.0 for key in _CHECK_KEYS)
        least = _LEAST_SHARE * (value - gain) if start == RANDOM else 0.0
        knows = None if min(value, value - gain) > _CEILING else gain > max(margin, least)
        words.append(
            f"an image is found by another view of it in {value:.1f} % of cases, {value - gain:.1f} % with {start} "
            f"({gain:+.1f} +- {margin:.1f})"
        )
    if before and len(scored) > len(before):
        now, at_start = scored[-1]["knn_top1"] or 0.0, before[0] or 0.0
        margin = scored[-1].get("knn_top1_margin") or 0.0
        if abs(now - at_start) > margin:  # else it says nothing, and the check decides
            knows = now > at_start
        words.insert(0, f"kNN {now:.1f} (+- {margin:.1f}), {at_start:.1f} with {start}")
    return knows, "; ".join(words)


def _mean(values: Sequence[float | None]) -> float:
    """Of those that are known: a value that was not finite is None in the log."""
    known = [value for value in values if value is not None]
    return sum(known) / max(1, len(known))

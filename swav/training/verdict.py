"""The verdict on a run's health, from its lines of metrics; no torch here.

Losses are means over a window of lines: the last ones, and the lowest so far. What the bounds were measured on is in docs/log.md.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

History = Sequence[Mapping[str, float | None]]

RANDOM = "random weights"  # what fresh weights are called
SURE_AFTER = 50  # lines of metrics: before, a run that has not left its start is not judged
# Shares of ln K. In 20 runs that learned, the loss rose by at most 2 % above its best (16 % where the queue joined), in two that
# broke by 30 and 89 % (docs/log.md).
_NEAR = 0.02  # at ln K: so much above or below
# Above the best so far: at once; for half of the run; at any time, with nothing left.
_RISE, _SLOW_RISE, _BROKE = 0.05, 0.02, 0.10
_LOOKED_BACK = 300  # lines, for the last judgement before a resume that was not "too early"
_ERRORS = 4  # standard errors of a difference that is no chance
_ALIKE = 0.05  # spread of embeddings (1: over the whole sphere) below which all are the same
_EQUAL = 0.99  # of ln K: entropy of codes that hardly differ from equal ones
_CHECK_KEYS = ("view_retrieval", "view_retrieval_gain", "view_retrieval_margin")
_LEAST_SHARE = 0.25  # of random weights' view retrieval: runs that gained less were no better by kNN (docs/log.md)
_CEILING = 98.0  # of view retrieval [%]: where both are above, no gain can be seen


class HealthFacts(NamedTuple):
    """What a run's lines are judged by.

    Attributes:
        ln_k: the loss of uniform codes, Recipe.log_prototypes [nats].
        images: that are trained on.
        prototypes: of the largest set.
        start: what the weights at the start are called.
        unsettled: steps (after, up to) in which the queue joins the codes. The loss jumps there, and what was before is no measure
            of what comes after.
        flat: what is said of the images where most of them are nearly one colour; else empty.
    """

    ln_k: float
    images: int
    prototypes: int
    start: str = RANDOM
    unsettled: tuple[int, int] = (0, 0)
    flat: str = ""


class HealthCheck:
    """Judge a run while it trains, and warn where the judgement changes."""

    def __init__(self, facts: HealthFacts):
        self.facts = facts
        self.state = "healthy"

    def catch_up(self, history: History) -> None:
        """Bring the judgement to where it was after a run's lines so far, so that a resumed run does not repeat itself."""
        steps = [place for place, line in enumerate(history, start=1) if "loss" in line and _is_judged(place)]
        for length in steps[: -_LOOKED_BACK - 1 : -1]:
            state, _ = verdict(history[:length], self.facts)
            if state != "too early":
                self.state = state
                return

    def news(self, history: History) -> str | None:
        """The verdict and its advice, where it is another than the last time; else None."""
        if not _is_judged(len(history)):
            return None
        state, advice = verdict(history, self.facts)
        if state in ("too early", self.state):
            return None
        self.state = state
        return f"{state}: {advice}"


def _is_judged(lines: int) -> bool:
    """Of a long log not every line is judged: that would cost more with each."""
    return lines % max(1, lines // 500) == 0


def too_few(images: int, prototypes: int) -> str | None:
    """What is to be said of a run with fewer images than prototypes; None of any other."""
    if images >= prototypes:
        return None
    return (
        f"{images} images cannot fill {prototypes} prototypes, and so few cannot tell whether training works: the loss says "
        "only that nothing broke. Add images, or start from weights that saw more (init=W), and judge by a benchmark"
    )


def verdict(history: History, facts: HealthFacts, ended: bool = False, harm: str | None = None) -> tuple[str, str]:
    """Judge a run by its lines of metrics.

    Args:
        history: lines of metrics.jsonl.
        ended: the run is over; on the way nothing is said of what may still be learned.
        harm: why the weights at the start are better than the last, where they are given ones and it is so.

    Returns:
        One of healthy, images of one colour, diverging, collapsing, too few images, prototypes dying, did harm, not learning, data-bound, too early; and
        the evidence, or what to do.
    """
    knows, evidence = learned(history, facts.start)
    if facts.flat and not knows:  # before all else: no setting of the training helps
        return "images of one colour", f"{facts.flat}; {evidence}" if ended and evidence else facts.flat
    if harm is not None:
        return (
            "did harm",
            f"{harm}. {evidence}. The best weights are exported; keep {facts.start}, or try a lower backbone_lr_factor",
        )
    lines = [line for line in history if "loss" in line]
    if len(lines) < 5 and not (ended and knows is False):
        return "too early", "fewer than five lines of metrics"
    found = _of_loss(lines, facts, ended, knows) or _of_prototypes(lines, facts)
    if found is not None:
        state, why = found
        return state, f"{why}; {evidence}" if ended and evidence else why
    if knows is False and ended:
        return _not_learned(history, facts.start, evidence)
    if (waiting := _mean(_recent(lines), "data_wait")) > 0.3:
        return "data-bound", f"{waiting:.0%} of the time goes into waiting for images: more workers, or smaller files"
    return "healthy", _healthy(lines, facts, ended, evidence)


# -- the loss


def _of_loss(lines: History, facts: HealthFacts, ended: bool, knows: bool | None) -> tuple[str, str] | None:
    """Diverging, collapsing, not learning or too early by the loss and the embeddings; None where there is nothing to object.

    Args:
        knows: whether more was found to be known than at the start; then a loss that is still at ln K is no failure. None: it is
            not known.
    """
    ln_k, recent, sure = facts.ln_k, _recent(lines), len(lines) >= SURE_AFTER
    loss, spread = ln_k - _mean(recent, "loss_gap"), _mean(recent, "embedding_std")
    at_ln_k = loss > (1 - _NEAR) * ln_k
    rise = _rise(lines, facts)
    if rise is not None and (rise.lasts or (at_ln_k and rise.high - rise.low > _BROKE * ln_k)):
        above = rise.high > (1 + _NEAR) * ln_k
        if above or rise.goes_on or not at_ln_k:  # else it came back to ln K from below and stays there: a collapse
            return "diverging", (
                f"the loss rose from {rise.low:.2f} (step {rise.low_step}) to {rise.high:.2f}, and is {loss:.2f} now: lower the "
                "learning rate to a third, warm up longer, or limit gradients (clip_gradient=1)"
            )
    if spread >= _ALIKE and (not at_ln_k or knows):
        return None
    if not sure and ended and knows is False:  # there will be no more lines
        return None
    if not sure:
        return "too early", f"the loss ({loss:.2f}) has not fallen below ln K = {ln_k:.2f} yet"
    if spread < _ALIKE:
        return "collapsing", f"embeddings are all alike (spread {spread:.2f} of 1): {_AGAINST_COLLAPSE}"
    _, since = _around_the_queue(lines, facts)
    queue_is_new = _step(lines[-1]) > facts.unsettled[0] and len(since) < SURE_AFTER
    if not ended and (_warms_up(recent) or queue_is_new):
        return (
            "too early",
            f"the loss ({loss:.2f}) is not below ln K = {ln_k:.2f} while the rate rises or the queue begins",
        )
    if loss > (1 + _NEAR) * ln_k:
        first = ln_k - _mean((since or lines)[: len(recent)], "loss_gap")
        what = f"the loss is {loss:.2f} ({first:.2f} before), above ln K = {ln_k:.2f}, that of equal codes"
        if not ended and first - loss > _NEAR * ln_k:
            return "too early", f"{what}, and falls"
        return "not learning", f"{what}: a higher learning rate, or train longer"
    if (entropy := _mean(recent, "code_entropy")) > _EQUAL * ln_k:
        return "collapsing", (
            f"the loss stays at ln K = {ln_k:.2f}, as the codes hardly differ from equal ones (entropy {entropy:.2f}): lower epsilon"
        )
    fell = _fallen_rank(lines)
    fills = f" and embeddings fill few directions ({fell})" if fell else ""
    return "collapsing", f"the loss stays at ln K = {ln_k:.2f}{fills}: {_AGAINST_COLLAPSE}"


_AGAINST_COLLAPSE = "spread embeddings (koleo=0.1 to 0.3), lower the learning rate, freeze prototypes longer, or a larger batch or queue"


class _Rise(NamedTuple):
    """The loss above its best so far [nats].

    Attributes:
        low, high: means over a window, and `low_step` the last step of the lower one.
        lasts: the last window still is above the lowest, by more than a run that learns ever was.
        goes_on: it rises now.
    """

    low: float
    high: float
    low_step: int
    lasts: bool
    goes_on: bool


def _rise(lines: History, facts: HealthFacts) -> _Rise | None:
    """Find the largest rise of the loss above its best so far, before and after the queue joins; that which lasts goes first."""
    width, rises = len(_recent(lines)), list[_Rise]()
    before, since = _around_the_queue(lines, facts)
    for part in (before, since):
        known = [(_step(line), gap) for line in part if (gap := line.get("loss_gap")) is not None]
        steps, losses = [step for step, _ in known], np.array([facts.ln_k - gap for _, gap in known])
        if len(losses) > width:
            is_last = part is since or not since
            rises.append(_largest_rise(losses, steps, width, facts.ln_k, is_last and len(lines) >= SURE_AFTER, is_last))
    lasting = [rise for rise in rises if rise.lasts]
    return max(lasting or rises, key=lambda rise: rise.high - rise.low, default=None)


def _largest_rise(
    losses: NDArray[np.float64], steps: Sequence[int], width: int, ln_k: float, sure: bool, is_last: bool
) -> _Rise:
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    means = (sums[width:] - sums[:-width]) / width
    lowest = np.minimum.accumulate(means)
    top = int(np.argmax(means - lowest))
    low = int(np.argmin(means))
    rise = float(means[-1] - means[low])
    # of a line: what sets it apart from the one before, trend or not
    noise = float(np.median(np.abs(np.diff(losses)))) / 0.954
    chance = _ERRORS * noise * math.sqrt(2 / width)
    lately = means[-1 - width // 2 :]
    comes_back, goes_on = (
        float(change) > _NEAR * ln_k for change in (lately.max() - means[-1], means[-1] - lately.min())
    )
    stays = is_last and not comes_back and rise > max(chance, float(means[low:].max() - means[low]) / 2)
    lasts = stays and rise > _RISE * ln_k
    lasts |= stays and sure and low < len(means) / 2 and rise > _SLOW_RISE * ln_k  # slowly, for half of the run
    if not lasts:
        low = int(np.argmin(means[: top + 1]))
    high = float(means[low:].max())
    return _Rise(float(means[low]), high, steps[low + width - 1], lasts, is_last and goes_on)


def _around_the_queue(lines: History, facts: HealthFacts) -> tuple[History, History]:
    """The lines before the queue joins the codes, and those since; without a queue all are of the second kind."""
    before = [line for line in lines if _step(line) <= facts.unsettled[0]]
    return before, [line for line in lines if _step(line) > facts.unsettled[1]]


def _step(line: Mapping[str, float | None]) -> int:
    return int(line.get("step") or 0)


def _warms_up(recent: History) -> bool:
    """Whether the learning rate still rises."""
    first, last = recent[0].get("lr"), recent[-1].get("lr")
    return first is not None and last is not None and last > first


# -- prototypes and rank


def _of_prototypes(lines: History, facts: HealthFacts) -> tuple[str, str] | None:
    if (why := too_few(facts.images, facts.prototypes)) is not None:
        return "too few images", why
    if len(lines) >= SURE_AFTER and _mean(_recent(lines), "prototypes_used") < 0.2:
        return (
            "prototypes dying",
            "few prototypes are ever chosen: fewer prototypes, a longer queue, or a smaller epsilon",
        )
    return None


def _fallen_rank(lines: History) -> str:
    """The effective rank, where it is less than half of what it was; else empty. It falls in most runs that learn, too."""
    ranks = [value for line in lines if (value := line.get("rankme")) is not None]
    now = _mean(_recent(lines), "rankme")
    return f"effective rank {now:.0f}, {max(ranks):.0f} before" if ranks and now < max(ranks) / 2 else ""


def _healthy(lines: History, facts: HealthFacts, ended: bool, evidence: str) -> str:
    recent, rise = _recent(lines), _rise(lines, facts)
    gap = _mean(recent, "loss_gap")
    where = f"{gap:.2f} below" if gap > _NEAR * facts.ln_k else "not below"
    parts = [f"the loss is {where} ln K, {_mean(recent, 'prototypes_used'):.0%} of prototypes are in use"]
    if ended:
        parts.append(evidence or "what was learned was not measured (check_every_epochs)")
    if rise is not None and rise.high - rise.low > _BROKE * facts.ln_k:
        parts.append(
            f"on the way the loss rose from {rise.low:.2f} (step {rise.low_step}) to {rise.high:.2f}: try a lower rate"
        )
    if fell := _fallen_rank(lines):
        parts.append(f"{fell}, which says little by itself")
    return "; ".join(parts)


# -- what was learned


def _not_learned(history: History, start: str, evidence: str) -> tuple[str, str]:
    if _rises(history):
        return "too early", f"{evidence}, and it rises: train longer"
    more = "or start from weights that saw more (init=W)" if start == RANDOM else f"or keep {start}"
    return "not learning", f"{evidence}. Train longer, use more images, change koleo (0.1 to 0.3) or lr, {more}"


def _checks(history: History) -> list[tuple[int, float, float, float]]:
    """Step, view retrieval, its gain and the gain's margin, of each check."""
    return [
        (int(line["step"] or 0), *(line.get(key) or 0.0 for key in _CHECK_KEYS))  # type: ignore[misc]
        for line in history
        if line.get("view_retrieval_gain") is not None
    ]


def _rises(history: History) -> bool:
    """Whether view retrieval was better at the last check than at the one before, by more than chance."""
    checks = _checks(history)
    if len(checks) < 3:
        return False
    (_, _, before, its_margin), (_, _, now, margin) = checks[-2:]
    return now - before > math.hypot(margin, its_margin)


def learned(history: History, start: str) -> tuple[bool | None, str]:
    """Find out whether more is known than at the start: by kNN where there are labels, else by view retrieval.

    Returns:
        Whether it is, None where nothing was measured yet; and the evidence as text.
    """
    scored = [line for line in history if line.get("knn_top1") is not None]
    before = [line["knn_top1"] for line in scored if line["step"] == 0]
    checks = [check for check in _checks(history) if check[0]]
    words = []
    knows: bool | None = None
    if checks:
        _, value, gain, margin = checks[-1]
        least = _LEAST_SHARE * (value - gain) if start == RANDOM else 0.0
        knows = None if min(value, value - gain) > _CEILING else gain > max(margin, least)
        words.append(
            f"an image is found by another view of it in {value:.1f} % of cases, {value - gain:.1f} % with {start} "
            f"({gain:+.1f} +- {margin:.1f})"
        )
        step, most, best_gain, its_margin = max(checks, key=lambda check: check[2])
        if best_gain - gain > math.hypot(margin, its_margin):
            words[-1] += f", and {most:.1f} % at step {step}"
    if before and len(scored) > len(before):
        now, at_start = scored[-1]["knn_top1"] or 0.0, before[0] or 0.0
        margin = scored[-1].get("knn_top1_margin") or 0.0
        if abs(now - at_start) > margin:  # else it says nothing, and the check decides
            knows = now > at_start
        words.insert(0, f"kNN {now:.1f} (+- {margin:.1f}), {at_start:.1f} with {start}")
    return knows, "; ".join(words)


def _recent(lines: History) -> History:
    return lines[-max(5, len(lines) // 10) :]


def _mean(lines: History, key: str) -> float:
    """Of the values that are known: one that was not finite is None in the log."""
    known = [value for line in lines if (value := line.get(key)) is not None]
    return sum(known) / max(1, len(known))

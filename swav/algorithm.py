"""SwAV in one file: codes, swapped loss, queue, prototypes. Tensors in, tensors out.

Source: Caron et al. 2020, arXiv 2006.09882, section 3 and appendix A.

    letter   word          shape      meaning
    B        batch         -          samples of this process
    K        prototypes    -          cluster centres, unit rows [K, D]
    V        views         -          crops of one image
    A        code views    -          the crops that give codes (the largest ones)
    D        -             -          dimension of an embedding
    z        embedding     [V, B, D]  projected feature, unit norm
    s        scores        [V, B, K]  z times prototypes: cosines
    q        codes         [A, B, K]  soft assignments, rows sum to 1
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from swav import dist


@torch.no_grad()
def sinkhorn_codes(scores: Float[Tensor, "B K"], epsilon: float = 0.05, iterations: int = 3) -> Float[Tensor, "B K"]:
    """Soft assignments of samples to prototypes, balanced over prototypes, by Sinkhorn-Knopp.

        Q = exp(scores / epsilon)
        repeat `iterations` times:
            divide every prototype (column) by its sum over the samples of all processes
            divide every sample (row) by its sum over prototypes

    The samples come last, so rows sum to 1 exactly and prototypes are balanced only approximately
    (exactly for many iterations). When a process group runs, samples of all processes are balanced together.

    The first iteration is done in the log domain: a log-sum-exp over samples, stabilised by each prototype's
    maximum over all processes, then a softmax over prototypes. After it every prototype holds at least 1/(BK) of
    some sample, so nothing can underflow to 0/0: the result is finite for finite scores at any epsilon. (A constant
    per prototype leaves the codes unchanged; one per sample would not, which is why none is subtracted before the
    prototypes' first normalisation.)

    Args:
        scores: [B, K] of this process; cosines in the paper. Half types are computed in float32.
        epsilon: weight of the entropy; smaller is sharper. Not a guard against division by zero.
        iterations: at least 1; 3 in the paper.

    Returns:
        [B, K] codes in float32 (float64 for float64 scores), without gradient; rows sum to 1.

    Raises:
        ValueError: scores of another shape, epsilon is not positive, or iterations is below 1.

    Source: section 3.1, equations (3) to (5); the order of operations is the released code's.
    """
    if scores.ndim != 2 or not scores.numel():
        raise ValueError(
            f"scores: expected [B, K] of one code-giving crop, found {list(scores.shape)}; "
            "call sinkhorn_codes once per crop: [sinkhorn_codes(s) for s in scores[:2]]"
        )
    if not epsilon > 0 or iterations < 1:  # not a number is refused too
        raise ValueError(f"expected epsilon > 0 and iterations >= 1, found {epsilon} and {iterations}")
    logits = scores.to(torch.promote_types(scores.dtype, torch.float32)) / epsilon
    logits -= dist.all_reduce_max(logits.amax(dim=0))
    logits -= dist.all_reduce_sum(logits.exp().sum(dim=0)).log()
    codes = logits.softmax(dim=1)
    for _ in range(iterations - 1):
        codes /= dist.all_reduce_sum(codes.sum(dim=0))
        codes /= codes.sum(dim=1, keepdim=True)
    return codes


def hard_assignments(codes: Float[Tensor, "*B K"]) -> Float[Tensor, "*B K"]:
    """One-hot codes: all on the largest entry (the first of equal ones). An option, not the paper's choice.

    Source: section 3.1 compares both and keeps soft codes ("rounding is a more aggressive optimization step"); the
    original's maintainers advise hard ones for runs that do not leave ln K.

    Raises:
        ValueError: codes without prototypes.
    """
    if not codes.ndim or not codes.shape[-1]:
        raise ValueError(f"codes: expected [..., K], found {list(codes.shape)}; give it what sinkhorn_codes returns")
    return torch.zeros_like(codes).scatter_(-1, codes.argmax(dim=-1, keepdim=True), 1.0)


def swapped_loss(
    scores: Float[Tensor, "V B K"],
    codes: Float[Tensor, "A B K"],
    code_views: Sequence[int],
    temperature: float = 0.1,
) -> Float[Tensor, ""]:
    """Cross-entropy of every crop's prediction with the codes of every *other* code-giving crop.

        for a in code_views, for v in views, v != a:
            loss += mean over samples of  -sum_k codes[a] * log_softmax(scores[v] / temperature)
        loss /= len(code_views) * (V - 1)

    Written as log-sum-exp minus inner product, which never forms the log-softmax of all crops.

    Args:
        scores: [V, B, K] of all crops of this process.
        codes: [A, B, K], the codes of the crops named by `code_views`, in that order.
        code_views: A different indices of crops.
        temperature: of the softmax; 0.1 in the paper.

    Returns:
        The mean over this process's samples (gradients are averaged over processes afterwards).

    Raises:
        ValueError: scores or codes of another shape, fewer than two crops, or code_views that do not fit both.

    Source: section 3.1, equations (1) and (2); multi-crop: section 3.2, equation (6).
    """
    if scores.ndim != 3 or codes.ndim != 3 or codes.shape[1:] != scores.shape[1:] or 0 in scores.shape:
        raise ValueError(
            f"expected scores [V, B, K] and codes [A, B, K], found {list(scores.shape)} and {list(codes.shape)}; "
            "stack one of each per crop: codes = torch.stack([sinkhorn_codes(scores[a]) for a in code_views])"
        )
    num_views, batch = scores.shape[:2]
    if num_views < 2:
        raise ValueError(f"expected at least 2 crops to swap codes between, found {num_views}")
    if not temperature > 0:
        raise ValueError(f"temperature: expected more than 0, found {temperature}")
    code_views = [int(a) for a in code_views]
    if (
        len(code_views) != len(codes)
        or len(set(code_views)) != len(codes)
        or not all(0 <= a < num_views for a in code_views)
    ):
        raise ValueError(f"expected {len(codes)} different crop indices below {num_views}, found {list(code_views)}")
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) / temperature
    codes = codes.to(scores.dtype).detach()
    normaliser = torch.einsum("abk,vb->av", codes, scores.logsumexp(dim=2))
    agreement = torch.einsum("abk,vbk->av", codes, scores)
    is_other = torch.ones(len(codes), num_views, dtype=scores.dtype, device=scores.device)
    for a, view in enumerate(code_views):  # one by one: for an index that is a list the host would wait
        is_other[a, view].zero_()
    return ((normaliser - agreement) * is_other).sum() / (batch * len(codes) * (num_views - 1))


def koleo_loss(embeddings: Float[Tensor, "A B D"], eps: float = 1e-8) -> Float[Tensor, ""]:
    """Minus the mean log-distance from each embedding to the nearest other one of the same crop: it spreads them.

    An option, not part of the method. The neighbour is sought among the samples at hand: those of this process, and of
    the micro-batch where the batch is cut into such.

    Args:
        embeddings: [A, B, D] unit vectors, B at least 2.
        eps: added to the distance.

    Raises:
        ValueError: embeddings of another shape, or a single sample, which has no other.

    Source: Sablayrolles et al. 2019 (arXiv 1806.03198), equation 2; per crop as in DINOv2 (arXiv 2304.07193), weight .1 there.
    """
    if embeddings.ndim != 3:
        raise ValueError(
            f"embeddings: expected [A, B, D], found {list(embeddings.shape)}; of one crop give koleo_loss(z[None])"
        )
    count = embeddings.shape[1]
    if count < 2:
        raise ValueError(f"expected at least 2 samples to spread, found {count}")
    embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    with torch.no_grad():
        similarity = embeddings @ embeddings.transpose(1, 2)
        similarity.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        nearest = similarity.argmax(dim=2, keepdim=True)
    others = embeddings.gather(1, nearest.expand_as(embeddings))
    distance = torch.linalg.vector_norm(embeddings - others, dim=2)
    spread: Tensor = (distance + eps).log().mean()
    return -spread


@torch.no_grad()
def normalize_prototypes_(prototypes: Float[Tensor, "K D"]) -> None:
    """Make every prototype a unit vector, in place; done at the start of each step.

    Source: the released code. The paper's pseudo-code normalises after the update instead, so that a checkpoint's
    prototypes are a step away from unit norm here: normalise them after loading.

    Raises:
        ValueError: prototypes of another shape.
    """
    if prototypes.ndim != 2:
        raise ValueError(
            f"prototypes: expected [K, D], found {list(prototypes.shape)}; give it the weight of the layer: "
            "normalize_prototypes_(network.prototypes.weight)"
        )
    nn.functional.normalize(prototypes, dim=1, out=prototypes)


class Queue:
    """The last embeddings of each code-giving crop, which join the batch when codes are computed.

    Newest first. Used only once full, and pushed to after the codes of a batch are computed, so it never holds the
    batch that it balances. Its embeddings are scored with the current prototypes at every use. Fullness is counted on
    the host: asking costs no synchronisation.

    Source: section 3.1 ("Working with small batches"); the order of push and use is the released code's.

    Args:
        length: embeddings that this process keeps per code-giving crop.
        dim: dimension of an embedding.
        code_views: how many crops give codes.

    Raises:
        ValueError: from `push`, embeddings of another shape or more than the queue holds; from `load_state_dict`, a state
            of another queue.
    """

    def __init__(
        self,
        length: int,
        dim: int,
        code_views: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        self.embeddings = torch.zeros(code_views, length, dim, dtype=dtype, device=device)
        self.count = 0

    @property
    def full(self) -> bool:
        return self.count >= self.embeddings.shape[1]

    @torch.no_grad()
    def push(self, embeddings: Float[Tensor, "A B D"], skip: Tensor | None = None) -> None:
        """Push a batch in front and drop the oldest; nothing where the flag `skip` is true on the device.

        (`count` is the host's, which does not know the flag: a run whose step is skipped stops a step later.)
        """
        (views, length, dim), found = self.embeddings.shape, list(embeddings.shape)
        if len(found) != 3 or (found[0], found[2]) != (views, dim):
            raise ValueError(
                f"embeddings: expected [A, B, D] = [{views}, B, {dim}] of the code-giving crops, found {found}; "
                "push all crops at once: queue.push(z[code_views])"
            )
        if skip is not None and skip.numel() != 1:
            raise ValueError(f"skip: expected one flag for the whole batch, found {list(skip.shape)}; use skip.any()")
        batch = found[1]
        if batch > length:
            raise ValueError(f"expected at most {length} embeddings per push (the queue's length), found {batch}")
        newest, older = embeddings.detach().to(self.embeddings.dtype), self.embeddings[:, : length - batch]
        shifted = torch.cat([newest, older], dim=1)
        self.embeddings = shifted if skip is None else torch.where(skip, self.embeddings, shifted)
        self.count = min(self.count + batch, length)

    def state_dict(self) -> dict[str, Any]:
        return {"embeddings": self.embeddings, "count": torch.tensor(self.count)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        own, found = list(self.embeddings.shape), list(state["embeddings"].shape)
        if found != own:  # copied as it is, a smaller one would fill the queue with repetitions
            raise ValueError(
                f"queue: expected embeddings [A, L, D] = {own}, found {found}; build Queue(L, D, A) of that state"
            )
        if not 0 <= (count := int(state["count"])) <= own[1]:
            raise ValueError(f"queue: expected a count of 0 to {own[1]}, found {count}")
        self.embeddings.copy_(state["embeddings"])
        self.count = count

"""Health of a run: what is logged of every step, which verdict.py judges.

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

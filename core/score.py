"""How likely a model finds given continuations of given texts: the choice of endings and labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class Score:
    log_probability: float  # of all tokens of the continuation together, in nats
    tokens: int  # of the continuation
    greedy: bool  # whether each of them is the likeliest there

    @property
    def mean(self) -> float:
        """Log-probability a token, by which endings of different length are compared."""
        return self.log_probability / self.tokens


@torch.inference_mode()
def score(
    model: nn.Module, pairs: Sequence[tuple[list[int], list[int]]], batch_size: int, autocast
) -> list[Score]:
    """The score of each (context, continuation), ids both, none of them empty.

    Rows of like length are computed together, padded on the right, where causal attention never
    looks. A context that does not fit in block_size keeps its last tokens.
    """
    block_size, device = model.config.block_size, next(model.parameters()).device
    rows = [(context + ending)[-block_size - 1 :] for context, ending in pairs]
    longest_first = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    scores: dict[int, Score] = {}
    for first in range(0, len(rows), batch_size):
        chosen = longest_first[first : first + batch_size]
        T = max(len(rows[i]) for i in chosen) - 1
        x = torch.zeros(len(chosen), T, dtype=torch.long)
        y = torch.full((len(chosen), T), -1)
        for n, i in enumerate(chosen):
            ids, ending = torch.tensor(rows[i]), min(len(pairs[i][1]), len(rows[i]) - 1)
            x[n, : len(ids) - 1] = ids[:-1]
            y[n, len(ids) - 1 - ending : len(ids) - 1] = ids[-ending:]
        x, y = x.to(device), y.to(device)
        with autocast:
            logits = model(x)  # (B, T, V)
        graded = y >= 0
        right = ((logits.argmax(-1) == y) | ~graded).all(1).tolist()
        likely = logits.log_softmax(-1).gather(2, y.clamp(min=0)[:, :, None])[:, :, 0]
        sums = (likely * graded).sum(1).tolist()
        for n, i in enumerate(chosen):
            scores[i] = Score(sums[n], int(graded[n].sum()), right[n])
    return [scores[i] for i in range(len(rows))]

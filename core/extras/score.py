"""How likely a model finds given continuations of given contexts, such as endings or labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class Score:
    log_probability: float  # of all tokens of the continuation together, in nats
    tokens: int  # of the continuation
    greedy: bool  # whether each of them is the likeliest at its position

    @property
    def mean(self) -> float:
        """Log-probability per token, by which continuations of different length are compared."""
        return self.log_probability / self.tokens


@torch.inference_mode()
def score(
    model: nn.Module, pairs: Sequence[tuple[list[int], list[int]]], batch_size: int, autocast
) -> list[Score]:
    """The score of each (context, continuation), both token ids, neither empty.

    Sequences of similar length are computed together, padded on the right, where causal attention
    never looks, and equal ones once: labels of one token share the sequence of their context. What
    does not fit in block_size loses its first tokens.
    """
    block_size, device = model.config.block_size, next(model.parameters()).device
    sequences: dict[tuple, list[int]] = {}  # what the model reads -> the pairs that need it
    for i, (context, continuation) in enumerate(pairs):
        assert context and continuation, "both need a token"
        sequences.setdefault(tuple((context + continuation)[-block_size - 1 : -1]), []).append(i)
    longest_first = sorted(sequences, key=len, reverse=True)
    scores: dict[int, Score] = {}
    for first in range(0, len(longest_first), batch_size):
        batch = longest_first[first : first + batch_size]
        x = torch.zeros(len(batch), len(batch[0]), dtype=torch.long)  # (B, T)
        for row, sequence in zip(x, batch, strict=True):
            row[: len(sequence)] = torch.tensor(sequence)
        with autocast:
            logits = model(x.to(device))  # (B, T, V)
        for n, sequence in enumerate(batch):
            for i in sequences[sequence]:
                y = torch.tensor(pairs[i][1][-len(sequence) :], device=device)
                end = len(sequence)
                log_probs = logits[n, end - len(y) : end].log_softmax(-1)  # (len(y), V)
                total = log_probs.gather(1, y[:, None]).sum().item()
                scores[i] = Score(total, len(y), bool((log_probs.argmax(-1) == y).all()))
    return [scores[i] for i in range(len(pairs))]

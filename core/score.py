"""How likely a model finds given continuations of given texts: the choice of endings and labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from core.tokenizer import EXTRACT, PAD, Tokenizer


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
    """The score of each (context, continuation), ids both, the continuation not empty.

    Rows of like length are computed together, padded on the right, where causal attention never
    looks, and each only once: labels of one token share that of their context. What does not fit
    in block_size loses its first tokens.
    """
    block_size, device = model.config.block_size, next(model.parameters()).device
    rows: dict[tuple, list[int]] = {}  # what the model reads -> the pairs that it serves
    for i, (context, ending) in enumerate(pairs):
        rows.setdefault(tuple((context + ending)[-block_size - 1 : -1]), []).append(i)
    longest_first = sorted(rows, key=len, reverse=True)
    scores: dict[int, Score] = {}
    for first in range(0, len(rows), batch_size):
        chosen = longest_first[first : first + batch_size]
        x = torch.zeros(len(chosen), len(chosen[0]), dtype=torch.long)
        for n, row in enumerate(chosen):
            x[n, : len(row)] = torch.tensor(row)
        with autocast:
            logits = model(x.to(device))  # (B, T, V)
        for n, row in enumerate(chosen):
            for i in rows[row]:
                ending = pairs[i][1][-len(row) :]
                y = torch.tensor(ending, device=device)
                there = logits[n, len(row) - len(ending) : len(row)].log_softmax(-1)
                total = there.gather(1, y[:, None]).sum().item()
                scores[i] = Score(total, len(ending), bool((there.argmax(-1) == y).all()))
    return [scores[i] for i in range(len(pairs))]


def questions(tokenizer: Tokenizer, text: str, task: dict) -> list[list[int]]:
    """The ids after which a model says a text's label, those of a long text in several parts.

    task: as prepare_reviews.py describes it: {"length": tokens that the model reads, "padded":
    whether padding stands before the question, ...}.
    """
    ids, most = tokenizer.encode_array(text).tolist(), task["length"] - 1
    count = max(1, -(-len(ids) // most))
    size = -(-len(ids) // count)
    parts = [ids[i * size : (i + 1) * size] for i in range(count)]
    if task["padded"]:
        parts = [part + [tokenizer.special[PAD]] * (most - len(part)) for part in parts]
    return [[*part, tokenizer.special[EXTRACT]] for part in parts]

"""Draw the loss curves of one run or several into a PNG.

    python -m tools.plot out/shakespeare_char
    python -m tools.plot out/one out/two --x=time --png=compared.png

Training loss is the line, validation loss the dots; accuracy, where a run has it, stands below.
"""

import sys

if not __package__:  # started by its path
    print("start it from the repository's root: python -m tools.plot out/RUN", file=sys.stderr)
    sys.exit(2)

import os
from typing import Literal

from configurator import configure

from core import UserError, log

# ---- settings ------------------------------------------------------------------------------------
x: Literal["step", "tokens", "time"] = "step"  # steps, tokens trained on, or seconds of training
png = "loss.png"  # the file to write
smooth = 0.5  # weight of the past in the running mean of the training loss, 0 = none
runs: list[str] = []
globals().update(configure(__file__, words=runs))
if not runs:
    raise UserError("name the folders of the runs to draw: python -m tools.plot out/RUN")
import matplotlib

matplotlib.use("Agg")  # no screen is needed
from matplotlib import pyplot


# ---- the curves ----------------------------------------------------------------------------------
def positions(training: list[dict]) -> dict[int, float]:
    """step -> its position on the axis."""
    found, seconds, before = {0: 0.0}, 0.0, 0
    for record in training:
        seconds, before = seconds + record["ms"] / 1e3 * (record["step"] - before), record["step"]
        found[before] = {"step": before, "tokens": record["tokens"], "time": seconds}[x]
    return found


def running_mean(values: list[float]) -> list[float]:
    means, mean, weight = [], 0.0, 0.0
    for value in values:
        mean, weight = smooth * mean + (1 - smooth) * value, smooth * weight + 1 - smooth
        means.append(mean / weight)  # as Adam corrects the bias of its beginning
    return means


def position_of(step: int, position: dict[int, float]) -> float:
    """The position of a step, which may lie between two that were logged."""
    before = max(s for s in position if s <= step)
    after = min((s for s in position if s >= step), default=before)
    fraction = (step - before) / (after - before) if after > before else 0.0
    return position[before] + fraction * (position[after] - position[before])


def have_numbers(records: list[dict], *names: str) -> list[dict]:
    """The records with a number by each of these names: a loss of NaN is null."""
    return [r for r in records if all(isinstance(r.get(name), int | float) for name in names)]


drawn = []
for folder in runs:
    records = log.read(os.path.join(folder, "log.jsonl"))
    training = have_numbers(records, "step", "loss", "ms", "tokens")
    evaluations = have_numbers(records, "step", "val_loss")
    if not training and not evaluations:
        raise UserError(f"{folder}/log.jsonl has nothing to draw: name the folder of a run.")
    drawn.append((os.path.normpath(folder), training, evaluations))
with_accuracy = any(have_numbers(evals, "val_accuracy") for _, _, evals in drawn)
rows = 2 if with_accuracy else 1
figure, axes = pyplot.subplots(
    rows, 1, figsize=(8, 4.5 if rows == 1 else 6.5), sharex=True, squeeze=False, dpi=110
)
in_view: list[float] = []  # losses after the first twentieth of a run, which is steep
for number, (folder, training, evaluations) in enumerate(drawn):
    position, color = positions(training), f"C{number}"
    train = [position[r["step"]] for r in training]
    smoothed = running_mean([r["loss"] for r in training])
    axes[0, 0].plot(train, smoothed, color=color, linewidth=1.5)
    where = [position_of(r["step"], position) for r in evaluations]
    label = folder
    if evaluations:
        label += f": {min(r['val_loss'] for r in evaluations):.4f}"
    losses = [r["val_loss"] for r in evaluations]
    axes[0, 0].plot(where, losses, "o:", color=color, markersize=5, linewidth=1, label=label)
    both = list(zip(train + where, smoothed + losses, strict=True))
    in_view += [loss for at_x, loss in both if at_x >= max(train + where) / 20]
    examples = have_numbers(evaluations, "val_accuracy")
    accuracy = [(position_of(r["step"], position), r["val_accuracy"]) for r in examples]
    if accuracy:
        axes[1, 0].plot(*zip(*accuracy, strict=True), "o:", color=color, markersize=5, linewidth=1)
units = {"step": "steps", "tokens": "tokens", "time": "seconds of training"}
axes[0, 0].set_ylabel("loss, nats per token")
axes[0, 0].set_ylim(top=1.05 * max(in_view))
axes[0, 0].legend(title="run: lowest validation loss", frameon=False)
if with_accuracy:
    axes[1, 0].set_ylabel("validation accuracy")
axes[-1, 0].set_xlabel(units[x])
for axis in axes[:, 0]:
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
figure.tight_layout()
try:
    figure.savefig(png)
except ValueError as error:
    raise UserError(f"--png={png}: {error}.") from None
print(f"{png}: {', '.join(folder for folder, *_ in drawn)}")

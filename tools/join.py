"""Write a checkpoint that is in parts, as large models under FSDP have it, as one file.

    python -m tools.join --out_dir=out/large --to=large.pt

The file has all that the checkpoint has, and resumes, samples and exports as it does. It needs no
other file. Its weights and moments have to fit into memory.
"""

import sys

if not __package__:  # started by its path
    print("start it as a module from the repository's root: python -m tools.join", file=sys.stderr)
    sys.exit(2)

import os

from configurator import configure

import torch

from core import UserError, checkpoint

# ---- settings ------------------------------------------------------------------------------------
out_dir = ""  # a run's folder or a .pt file; by default the newest run under out/
to = ""  # the file to write, which must not exist yet
globals().update(configure(__file__))

if not to or os.path.lexists(to):
    raise UserError(f"to={to!r}: name a file that does not exist yet, such as --to=large.pt.")
loaded = checkpoint.load_file(checkpoint.resolve_checkpoint(out_dir))
loaded.pop("parts", None)
for state in loaded.get("optimizers", {}).values():
    for moments in state["state"].values():
        for name, moment in moments.items():
            moments[name] = torch.cat(moment) if isinstance(moment, list) else moment
checkpoint.save(loaded, to)
print(f"{to}: {os.path.getsize(to):,} bytes, after step {loaded['step']}")

"""Write a checkpoint of GPT-2's architecture as a folder that Hugging Face's transformers loads.

    python export.py --out_dir=out/gpt2 --to=my-gpt2

Then AutoModelForCausalLM.from_pretrained("my-gpt2") and AutoTokenizer do; so does --init_from here.
"""

import os
import shutil

from tqdm import tqdm

from configurator import configure
from core import UserError, checkpoint, huggingface

# ---- settings ------------------------------------------------------------------------------------
out_dir = ""  # a run's folder, a .pt file, or gpt2 and its like; by default the newest run
to = ""  # the folder to write, which must not be there yet
globals().update(configure(__file__))

if not to:
    raise UserError("--to= names the folder to write.")
if os.path.exists(to):
    raise UserError(f"--to={to} is there already: name a new folder, or remove it first.")
path = checkpoint.find(out_dir or checkpoint.newest_run(), tqdm)
loaded = checkpoint.load(path)
unfinished = f"{os.path.normpath(to)}.tmp"
try:
    huggingface.write(loaded, unfinished)
    os.rename(unfinished, to)
except OSError as error:
    raise UserError(f"--to={to} can't be written: {error}.") from None
finally:
    shutil.rmtree(unfinished, ignore_errors=True)
if loaded["tokenizer"] is None:
    print(f"{path} carries no tokenizer: {to} has the weights only")
print(f"{path} is now {to}, for transformers' AutoModelForCausalLM.from_pretrained")

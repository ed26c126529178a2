"""What recompute makes of well-known models: the two tables of docs/how-to/plan.md.

    python bench/recompute_table.py              # peak and extra time of strategies (a minute)
    python bench/recompute_table.py --batches    # the largest batch on 16, 24 and 80 GB (an hour)

The first is ``graphsim compare MODEL --budget 0.6x``, the second ``graphsim fit MODEL --memory 16GB``, with
``--strategy blocks`` and ``--strategy auto``; all with AdamW, times by the roofline of an A100.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from typing import Any

MODELS = {
    "vgg16": "vgg16 --batch 256",
    "resnet50": "resnet50 --batch 256",
    "unet": "unet",
    "gpt2-xl": "gpt2 --set layers=48 --set width=1600 --set heads=25 --batch 8 --seq 1024",
    "bert_large": "bert_large --batch 32 --seq 512",
    "llama3_8b, bf16": "llama3_8b --batch 1 --precision bf16",
}
STRATEGIES = ("none", "blocks", "sqrt", "selective", "auto")
MEMORY = ("16GB", "24GB", "80GB")
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batches", action="store_true")
    options = parser.parse_args()
    if options.batches:
        batches()
    else:
        peaks()


def peaks() -> None:
    print("| model | " + " | ".join(STRATEGIES) + " |\n|---|" + "---:|" * len(STRATEGIES))
    for command in MODELS.values():
        plans = {plan["strategy"]: plan for plan in graphsim(f"compare {command} --budget 0.6x --json")}
        cells = [
            f"{plans[s]['peak_bytes'] / GIB:.1f} GiB" + (f" {plans[s]['overhead']:+.1%}" if s != "none" else "")
            for s in STRATEGIES
        ]
        print(f"| `{command}` | " + " | ".join(cells) + " |", flush=True)


def batches() -> None:
    print("| model | strategy | " + " | ".join(MEMORY) + " |\n|---|---|" + "---:|" * len(MEMORY))
    for name, command in MODELS.items():
        for strategy in ("", "blocks", "auto"):
            option = f" --strategy {strategy}" if strategy else ""
            found = [graphsim(f"fit {command} --memory {memory}{option} --json")["max_batch"] for memory in MEMORY]
            print(f"| {name} | {strategy or 'none'} | " + " | ".join(str(batch) for batch in found) + " |", flush=True)


def graphsim(command: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "graphsim", *shlex.split(command)], capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 1):
        sys.exit(done.stderr)
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()

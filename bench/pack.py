"""Pack the hard instances of MiniMalloc: greedy with hill climbing, then exact; print height / capacity.

    python bench/pack.py FOLDER [--seconds 5] [--exact 60]

FOLDER holds CSV files id,lower,upper,size whose names end in the capacity: A.1048576.csv.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from graphsim.memory.packing import best_greedy, climb, solve
from graphsim.memory.packing.instance import check, read_instance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=5.0, help="for greedy with hill climbing")
    parser.add_argument("--exact", type=float, default=60.0, help="for the solver; 0 leaves it out")
    options = parser.parse_args()
    heights, solved = [], 0
    paths = sorted(options.folder.glob("*.csv"))
    print(f"{'':3}{'blocks':>7}{'bound':>8}{'greedy':>8}{'climb':>8}{'exact':>8}{'seconds':>9}")
    for path in paths:
        instance, capacity = read_instance(path), int(path.name.split(".")[1])
        greedy, climbed = best_greedy(instance), climb(instance, seconds=options.seconds, goal=capacity)
        check(instance, climbed.offset)
        heights.append(climbed.height / capacity)
        line = f"{path.name[0]:3}{len(instance.size):>7}{instance.lower_bound / capacity:>8.3f}"
        line += f"{greedy.height / capacity:>8.3f}{heights[-1]:>8.3f}"
        if options.exact:
            start = time.perf_counter()
            exact = solve(instance, capacity=capacity, seconds=options.exact)
            check(instance, exact.offset)
            solved += exact.height <= capacity
            line += f"{exact.height / capacity:>8.3f}{time.perf_counter() - start:>9.1f}"
        print(line, flush=True)
    print(f"mean of climb: {sum(heights) / len(paths):.3f}; solved at capacity: {solved} of {len(paths)}")


if __name__ == "__main__":
    main()

"""Loading checkpoints with the names and shapes of the public networks, at their full size: seconds and memory.

    python benchmarks/checkpoints.py [--only e4e ...] [--out benchmarks/results/checkpoints.json]

The files are written here, with random weights (tests/full_size_files.py), into a temporary folder, and lie in the page
cache when they are read. Each network is loaded in a new process. Memory is what the process has at the worst moment
beyond what it has after its imports; it includes the pages of the file itself, and code that the first load brings in.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from harness import ROOT, facts, markdown, write

sys.path.insert(0, str(ROOT / "tests"))
from full_size_files import FULL_SIZE, measure


def run(names) -> dict:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            filename, kinds, writer = FULL_SIZE[name]
            path = Path(folder) / filename
            writer(path)
            for kind in kinds:
                found = measure(path, kind)
                rows.append(
                    {
                        "file": name, "network": kind, "seconds": round(found["seconds"], 2),
                        "file MB": round(found["file_bytes"] / 1e6, 1),
                        "network MB": round(found["tensors_bytes"] / 1e6, 1),
                        "peak MB": round(found["peak_bytes"] / 1e6, 1),
                        "peak / file": round(found["peak_bytes"] / found["file_bytes"], 2),
                    }
                )  # fmt: skip
            path.unlink()
    return {"rows": rows, "table": markdown(rows), "facts": facts(torch.device("cpu"))}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=FULL_SIZE, default=list(FULL_SIZE))
    parser.add_argument("--out", type=Path, help="JSON file of the result")
    options = parser.parse_args()
    result = run(options.only)
    if options.out:
        write(options.out, result)
    print(result["table"])

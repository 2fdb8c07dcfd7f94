"""make gpu-check without a GPU: the script runs whole, resumes, keeps what it has, and says what failed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def gpu_check(out, *arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py"), "--out", str(out), *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, cwd=ROOT, capture_output=True, text=True,
        timeout=900,
    )  # fmt: skip


@pytest.mark.slow
def test_every_part_runs_in_a_dry_run(tmp_path):
    found = gpu_check(tmp_path, "--dry")
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
    parts = json.loads((tmp_path / "gpu_check.json").read_text())
    assert list(parts) == ["build", "tests", "correctness", "sanitizer", "convolutions", "kernels", "ladder"]
    page = (tmp_path / "gpu_check.md").read_text()
    assert page.startswith("# gpu-check (dry") and "No check failed." in page
    for name, part in parts.items():
        assert f"## {name}" in page and not part.get("failed") and part["facts"]["commit"]
    assert all(row["fine"] for row in parts["correctness"]["rows"])
    assert all("error" not in row and row["us"] > 0 for row in parts["kernels"]["rows"])
    rungs = {row["rung"]: row for row in parts["ladder"]["rows"]}
    assert {"textbook torch", "plain torch", "plain torch, compiled", "ours", "ours, eager"} <= set(rungs)
    assert all(row["ms"] > 0 for row in rungs.values())
    choices = json.loads((tmp_path / "forms.json").read_text())
    assert [choice["layer"][0] for choice in choices] == ["cpu"] * 2 * 5  # dtypes, layers

    again = gpu_check(tmp_path, "--dry")
    assert again.stdout.count("done already") == len(parts)


@pytest.mark.slow
def test_what_was_measured_before_a_stop_is_kept(tmp_path):
    row = {"kernel": "epilogue", "us": 1.0}
    (tmp_path / "kernels.unfinished.json").write_text(json.dumps({"rows": [row], "seconds": 60.0, "facts": {}}))
    found = gpu_check(tmp_path, "--dry", "--only", "build")
    assert found.returncode == 0, found.stderr
    assert "Not finished.\n\n| kernel | us |" in (tmp_path / "gpu_check.md").read_text()


@pytest.mark.slow
def test_without_a_gpu_it_says_so(tmp_path):
    found = gpu_check(tmp_path)
    assert found.returncode == 2 and "no CUDA device here; --dry" in found.stderr
    found = gpu_check(tmp_path, "--dry", "--only", "everything")
    assert found.returncode == 2 and "no part is called 'everything'" in found.stderr


def test_a_part_over_its_time_is_stopped_with_all_that_it_started(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from gpu_check import run_limited

    child = f"import pathlib, time; time.sleep(4); pathlib.Path({str(tmp_path / 'alive')!r}).touch()"
    parent = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', sys.argv[1]]); time.sleep(60)"
    assert run_limited([sys.executable, "-c", parent, child], 2) == "stopped after 2 s"
    assert run_limited([sys.executable, "-c", "raise SystemExit(3)"], 60) == "exit status 3"
    assert run_limited([sys.executable, "-c", ""], 60) == ""
    time.sleep(4)
    assert not (tmp_path / "alive").exists()

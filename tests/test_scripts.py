"""Programs that no test runs as a whole, in benchmarks and docs: at least they find everything that they import."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted([*ROOT.glob("benchmarks/*.py"), *ROOT.glob("docs/**/*.py"), *ROOT.glob(".ci/*.py")])
IMPORT = """
import runpy, sys
from pathlib import Path
for path in sys.argv[1:]:
    sys.path.insert(0, str(Path(path).parent))
    try:
        runpy.run_path(path, run_name="imported")
    except ImportError as error:
        sys.exit(f"{path}: {error}")
    sys.path.pop(0)
"""


def test_scripts_find_what_they_import(run_python):
    assert len(SCRIPTS) > 10
    process = run_python(IMPORT, *map(str, SCRIPTS))
    assert process.returncode == 0, process.stderr

"""The compile gate: every kernel of csrc/cuda/*.cu compiled by nvcc for six architectures, without a GPU.

    python .ci/kernel_resources.py [--update] [FILE.cu ...]

Fails when a kernel spills registers, or is worse than csrc/cuda/resources.tsv says: more registers, more static shared
memory, a larger stack, narrower loads or stores. It also fails when a kernel is missing there, or has vanished.
--update writes the table anew. Without files: all of them. The numbers hold for one version of nvcc, which the table
names; another version is held to "no spills" only.
"""

import argparse
import concurrent.futures
import dataclasses
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "csrc" / "cuda"
TABLE = FOLDER / "resources.tsv"
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
# The PTX that each is made from. Two, not six: half of nvcc's time goes into PTX, and kernels must not look at the
# architecture. Loads and stores are read from the last one.
PTX = {"compute_80": ARCHITECTURES[:3], "compute_90": ARCHITECTURES[3:]}


@dataclasses.dataclass
class Resources:
    """What ptxas -v says of one kernel on one architecture; bytes but for the registers."""

    registers: int = 0
    shared: int = 0
    stack: int = 0
    spills: int = 0


@dataclasses.dataclass
class Kernel:
    load: int = 0  # bytes of the widest read-only or asynchronous load from global memory
    store: int = 0  # bytes of the widest store to global memory
    resources: dict = dataclasses.field(default_factory=dict)  # architecture -> Resources


def parse_ptxas(text):
    """{(mangled name, architecture): Resources} of the messages of `nvcc -Xptxas -v`.

    Spills of functions that a kernel calls count as the kernel's.
    """
    found, current, function = {}, None, None
    for line in text.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)' for '(sm_\w+)'", line):
            current = found.setdefault(match.groups(), Resources())
            entry = match.group(1)
        elif match := re.search(r"Function properties for (\S+)", line):
            function = match.group(1)
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            stack, stores, loads = map(int, match.groups())
            current.spills += stores + loads
            if function == entry:
                current.stack = stack
        elif match := re.search(r"Used (\d+) registers", line):
            current.registers = int(match.group(1))
            shared = re.search(r"(\d+) bytes smem", line)
            current.shared = int(shared.group(1)) if shared else 0
    return found


def parse_ptx(text):
    """{mangled name: (bytes of the widest ld.global.nc or cp.async, bytes of the widest st.global)} of a PTX file."""
    found = {}
    for name, body in re.findall(r"\.entry (\w+)\((.*?)^\}", text, re.S | re.M):
        widths = {"load": [0], "store": [0]}
        for instruction, vector, bits in re.findall(r"\b(ld\.global\.nc|st\.global)(?:\.v(\d))?\.[a-z]+(\d+)\s", body):
            kind = "load" if instruction.startswith("ld") else "store"
            widths[kind].append(int(vector or 1) * int(bits) // 8)
        for size in re.findall(r"\bcp\.async\.\w+\.shared\.global \[\S+\], \[\S+\], (\d+)", body):
            widths["load"].append(int(size))
        found[name] = (max(widths["load"]), max(widths["store"]))
    return found


def demangle(names):
    """{mangled name: "kernel<float, 4>"}: without our namespace, the return type and the parameters."""
    names = sorted(names)
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    short = {}
    for name, full in zip(names, text.splitlines()):
        depth, end = 0, len(full)
        for end in range(len(full) - 1, -1, -1):  # to the parenthesis that opens the parameters
            depth += {")": 1, "(": -1}.get(full[end], 0)
            if depth == 0:
                break
        kernel = full[: end or len(full)] if full.endswith(")") else full
        short[name] = kernel.removeprefix("void ").replace("fastinv::cuda::", "")
    return short


def compile_file(path):
    """{(file, short name): Kernel} of one .cu file."""
    with tempfile.TemporaryDirectory() as scratch:
        command = ["nvcc", "-std=c++17", "-c", str(path), "-o", f"{scratch}/kernels.o", "-Xptxas", "-v"]
        command += ["--keep", "--keep-dir", scratch]
        for ptx, architectures in PTX.items():
            command += ["-gencode", f"arch={ptx},code=[{','.join(architectures)}]"]
        result = subprocess.run(command, capture_output=True, text=True, cwd=scratch)
        if result.returncode != 0:
            raise SystemExit(f"{path} does not compile:\n{result.stdout}{result.stderr}")
        widths = parse_ptx(pathlib.Path(scratch, f"{path.stem}.{ptx}.ptx").read_text())
    found = parse_ptxas(result.stdout + result.stderr)
    short = demangle({name for name, _ in found})
    if len(set(short.values())) < len(short):
        raise SystemExit(f"{path}: two kernels have the same name without their parameters; rename one")
    kernels = {}
    for (name, architecture), resources in found.items():
        kernel = kernels.setdefault((path.name, short[name]), Kernel(*widths.get(name, (0, 0))))
        kernel.resources[architecture] = resources
    return kernels


def nvcc_version():
    text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"release [\d.]+, V([\d.]+)", text).group(1)


def write_table(kernels, version):
    """The text of the table: a line for each kernel, with registers/shared/stack for each architecture."""
    lines = [
        f"# nvcc {version}; written by: python .ci/kernel_resources.py --update",
        "# load, store: bytes of the widest one; sm_*: registers/static shared bytes/stack bytes",
        "\t".join(("file", "kernel", "load", "store", *ARCHITECTURES)),
    ]
    for (file, name), kernel in sorted(kernels.items()):
        cells = [f"{r.registers}/{r.shared}/{r.stack}" for r in (kernel.resources[a] for a in ARCHITECTURES)]
        lines.append("\t".join((file, name, str(kernel.load), str(kernel.store), *cells)))
    return "\n".join(lines) + "\n"


def read_table(text):
    """(nvcc's version, {(file, short name): Kernel}) of the table's text."""
    version = re.match(r"# nvcc (\S+);", text).group(1)
    header, *rows = (line.split("\t") for line in text.splitlines() if not line.startswith("#"))
    kernels = {}
    for file, name, load, store, *cells in rows:
        kernel = kernels[file, name] = Kernel(int(load), int(store))
        for architecture, cell in zip(header[4:], cells):
            kernel.resources[architecture] = Resources(*map(int, cell.split("/")))
    return version, kernels


def spills(kernels):
    """A line for each kernel and architecture that spills registers."""
    return [
        f"{file}: {name} on {architecture} spills {resources.spills} bytes of registers"
        for (file, name), kernel in sorted(kernels.items())
        for architecture, resources in kernel.resources.items()
        if resources.spills
    ]


def regressions(kernels, table):
    """A line for each way in which the kernels are worse than the table, or not the same kernels."""
    lines = []
    for file, name in sorted(kernels.keys() - table.keys()):
        lines.append(f"{file}: {name} is not in the table")
    for file, name in sorted(table.keys() - kernels.keys()):
        lines.append(f"{file}: {name} is in the table and was not compiled")
    for file, name in sorted(kernels.keys() & table.keys()):
        now, before = kernels[file, name], table[file, name]
        for what in ("load", "store"):
            if getattr(now, what) < getattr(before, what):
                lines.append(f"{file}: {name}: widest {what} {getattr(before, what)} -> {getattr(now, what)} bytes")
        for architecture, resources in now.resources.items():
            for what in ("registers", "shared", "stack"):
                old = getattr(before.resources.get(architecture, Resources()), what)
                if getattr(resources, what) > old:
                    lines.append(f"{file}: {name} on {architecture}: {what} {old} -> {getattr(resources, what)}")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write the table anew")
    parser.add_argument("--jobs", type=int, default=2, help="files that are compiled at a time")
    parser.add_argument("files", nargs="*", type=pathlib.Path)
    arguments = parser.parse_args()

    paths = [path.resolve() for path in arguments.files] or sorted(FOLDER.glob("*.cu"))
    kernels = {}
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        for found in pool.map(compile_file, paths):
            kernels |= found
    version = nvcc_version()
    recorded_version, table = read_table(TABLE.read_text()) if TABLE.exists() else (version, {})
    names = {path.name for path in paths}
    others = {key: kernel for key, kernel in table.items() if arguments.files and key[0] not in names}
    table = {key: kernel for key, kernel in table.items() if key not in others}

    problems = spills(kernels)
    if arguments.update:
        if others and recorded_version != version:
            raise SystemExit(f"the table is of nvcc {recorded_version}, this is {version}; update all files at once")
        TABLE.write_text(write_table(kernels | others, version))
        print(f"wrote {TABLE.relative_to(ROOT)}: {len(kernels | others)} kernels")
    elif recorded_version != version:
        print(f"nvcc {version} is not the table's {recorded_version}: only spills are looked for")
    else:
        problems += regressions(kernels, table)
    if problems:
        print("\n".join(problems))
        print("Spills must go. The rest: improve the kernel, or accept it: python .ci/kernel_resources.py --update")
        sys.exit(f"{len(problems)} problems")
    if not arguments.update:
        print(f"{len(kernels)} kernels on {len(ARCHITECTURES)} architectures: no spills, none worse than the table")


if __name__ == "__main__":
    main()

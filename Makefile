# make demo    set up (the first time only), then invert a render and a photograph with the embedded generator
# make test    set up (the first time only), then the tests and ruff; PYTEST_ARGS="-k upfirdn2d" narrows them down, with
#               PYTEST_ARGS="-n 0" they run in one process
# make native  build the native library into the source tree for the Python that PYTHON names; nothing else (development)
# make host    build the CUDA kernels as test modules for the CPU (csrc/host), into build/host; part of make test
# make gpu-check  correctness and speed on a CUDA GPU, results in benchmarks/results/gpu; QUICK=1 for a short run, DRY=1 to
#               try the script without a GPU, GPU_ARGS="--only kernels" (see benchmarks/gpu_check.py). With FASTINV_LIBRARY=
#               build/cuda/_native.so, a build that `make carried` made elsewhere, nothing is installed: PYTHON's torch is taken
# make bench   the CPU numbers: a step against the bare-convolution floor and textbook torch, passes, memory, accuracy,
#               losses, training; about 45 minutes on a quiet machine, QUICK=1 a few; BENCH_ARGS="--only step"
# make carried  the native library with its CUDA part for CUDA_ARCHS (9.0), in build/cuda: runs with any torch >= 2.10
# make format  format the C++ sources, sort imports
# make browser  install Gradio and Playwright into .venv: for `fastinv ui`, and for the tests that open pages in Debian's
#               chromium, which are skipped otherwise
# make clean   remove .venv and everything that was built
# Needs Python >= 3.10 (PYTHON=python3.12 picks one), a C++ compiler and make; the rest is installed into .venv.
# PIP_ARGS is handed to pip, e.g. PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" for the CPU build of torch.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
CSRC := $(shell find csrc -type f) CMakeLists.txt setup.py
CXX_FILES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test native host bench gpu-check carried browser format clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed $(VENV)/.native
	$(VENV)/bin/fastinv demo

# A process for each core: most operands are too small to share between threads.
test: $(VENV)/.installed $(VENV)/.native build/host/.built
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n logical --maxprocesses 8 --dist loadfile $(PYTEST_ARGS)
	$(RUN) -m ruff check -q .

host: build/host/.built

GPU_CHECK = benchmarks/gpu_check.py $(if $(QUICK),--quick) $(if $(DRY),--dry) $(GPU_ARGS)
ifdef FASTINV_LIBRARY
gpu-check:
	PYTHONPATH="$(CURDIR)" FASTINV_LIBRARY="$(abspath $(FASTINV_LIBRARY))" $(PYTHON) $(GPU_CHECK)
else
gpu-check: $(VENV)/.installed $(VENV)/.native
	$(RUN) $(GPU_CHECK)
endif

bench: $(VENV)/.installed $(VENV)/.native
	$(RUN) benchmarks/cpu.py $(if $(QUICK),--quick) $(BENCH_ARGS)

CUDA_ARCHS ?= 9.0
carried: $(VENV)/.dependencies
	FASTINV_CUDA=1 TORCH_CUDA_ARCH_LIST="$(CUDA_ARCHS)" $(VENV)/bin/cmake -S . -B build/cuda -G Ninja --log-level=WARNING \
	  -DFASTINV_PYTHON="$(CURDIR)/$(RUN)" -DCMAKE_MAKE_PROGRAM="$(CURDIR)/$(VENV)/bin/ninja"
	$(VENV)/bin/cmake --build build/cuda

native:
	$(PYTHON) setup.py -q build_ext --inplace

browser: $(VENV)/.browser

format: $(VENV)/.dependencies
	$(VENV)/bin/clang-format -i $(CXX_FILES)
	$(RUN) -m ruff check --select I --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info fastinv/_native*.so fastinv/_build.json

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "fastinv needs Python >= 3.10, $(PYTHON) is " + sys.version.split()[0] + "; type: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.dependencies: $(VENV)/.created constraints.txt
	@echo "Installing torch and the other dependencies into $(VENV): minutes the first time, depending on the network."
	$(RUN) -m pip install -q --disable-pip-version-check $(PIP_ARGS) -r constraints.txt
	# For its file of LPIPS weights only; with its dependencies pip would replace torch.
	$(RUN) -m pip install -q --disable-pip-version-check $(PIP_ARGS) --no-deps lpips==0.1.4
	@touch $@

$(VENV)/.browser: $(VENV)/.dependencies constraints-ui.txt
	$(RUN) -m pip install -q --disable-pip-version-check $(PIP_ARGS) -r constraints.txt -r constraints-ui.txt
	@touch $@

# The library is also rebuilt when somebody removed it.
ifeq ($(wildcard fastinv/_native.so),)
.PHONY: $(VENV)/.native
endif
$(VENV)/.native: $(VENV)/.dependencies $(CSRC)
	$(RUN) setup.py -q build_ext --inplace
	@touch $@

build/host/.built: $(VENV)/.dependencies $(CSRC)
	$(VENV)/bin/cmake -S . -B build/host -G Ninja --log-level=WARNING -DFASTINV_HOST=ON \
	  -DFASTINV_PYTHON="$(CURDIR)/$(RUN)" -DCMAKE_MAKE_PROGRAM="$(CURDIR)/$(VENV)/bin/ninja"
	$(VENV)/bin/cmake --build build/host -- --quiet
	@touch $@

# Puts the package (as a link to this folder) and the fastinv command into .venv; the library is there already.
$(VENV)/.installed: $(VENV)/.native pyproject.toml
	$(RUN) -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

# make demo   set up (first time only), then invert a render and a photograph with the embedded generator
# make test   set up (first time only), then every check and test
# make native build the native library into the source tree for the Python that PYTHON names (development)
PYTHON ?= python3

.PHONY: native
native:
	@mkdir -p build && flock build/.lock $(PYTHON) setup.py -q build_ext --inplace

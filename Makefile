# Two commands do all the set-up: `make demo` and `make test`. See CONTRIBUTING.md.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
KERNELS := CMakeLists.txt $(wildcard csrc/*.* csrc/kernels/*)

# Settings of the fuzz targets: how long each runs, and the seed of its random numbers.
SECONDS ?= 60
SEED ?= $(shell date +%s)

.PHONY: demo test fuzz fuzz-kernels lint bench kernels-report wheel clean
.DELETE_ON_ERROR:

demo: $(INSTALLED)
	mkdir -p out
	$(BIN)/momentnorm stylize skimage:astronaut --style mosaic -o out/astronaut-mosaic.jpg --force
	@echo "The stylized photograph: out/astronaut-mosaic.jpg"

test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror csrc/*.h csrc/*.cpp csrc/kernels/* \
		tests/core/*.h tests/core/*.cpp tests/fuzz/*.cpp benchmarks/*.cpp

bench: .venv/.bench
	$(BIN)/python -m benchmarks

# Damaged files for every reader and random calls of the kernels: make fuzz SECONDS=600. An input that
# breaks one of them is saved, and the last line says where.
fuzz: $(INSTALLED) fuzz-kernels
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

fuzz-kernels: build/address/kernels_fuzz build/thread/kernels_fuzz
	build/address/kernels_fuzz $(SECONDS) $(SEED)
	build/thread/kernels_fuzz $(SECONDS) $(SEED)

FUZZ_BUILD = $(BIN)/cmake -S . -B $(@D) -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	-DMOMENTNORM_TEST=ON
build/address/kernels_fuzz: $(INSTALLED) tests/fuzz/kernels.cpp
	$(FUZZ_BUILD)
	$(BIN)/cmake --build $(@D) --target kernels_fuzz
build/thread/kernels_fuzz: $(INSTALLED) tests/fuzz/kernels.cpp
	$(FUZZ_BUILD) -DMOMENTNORM_SANITIZERS=thread -DMOMENTNORM_NARROWEST=ON
	$(BIN)/cmake --build $(@D) --target kernels_fuzz

# The GPU kernels, compiled for GPUs that need not be there.
kernels-report: $(INSTALLED)
	$(BIN)/python tools/kernels_report.py --output docs/gpu-kernels.md

# A wheel of this machine's platform, in dist/. Releases are built by cibuildwheel.
wheel: $(INSTALLED)
	$(BIN)/python -m pip wheel --no-deps -w dist .

clean:
	rm -rf .venv build dist out

# Reinstalled, and so rebuilt, whenever the kernels or the dependencies change.
$(INSTALLED): pyproject.toml constraints.txt $(KERNELS)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) -e '.[dev]'
	touch $@

# The runtimes that the benchmarks compare with.
.venv/.bench: $(INSTALLED)
	$(INSTALL) -e '.[bench]'
	touch $@

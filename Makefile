# Two commands do all the set-up: `make demo` and `make test`. See CONTRIBUTING.md.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
KERNELS := CMakeLists.txt $(wildcard csrc/*.* csrc/kernels/*)

.PHONY: demo test fuzz lint bench kernels-report wheel clean
.DELETE_ON_ERROR:

demo: $(INSTALLED)
	mkdir -p out
	$(BIN)/momentnorm stylize skimage:astronaut --style mosaic -o out/astronaut-mosaic.jpg --force
	@echo "The stylized photograph: out/astronaut-mosaic.jpg"

test: $(INSTALLED)
	$(BIN)/python -m pytest

# Damaged files for every reader; those that break one are kept in tests/data/fuzz.
SECONDS ?= 60
fuzz: $(INSTALLED)
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror csrc/*.h csrc/*.cpp csrc/kernels/* tests/core/*.cpp benchmarks/*.cpp

bench: .venv/.bench
	$(BIN)/python -m benchmarks

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

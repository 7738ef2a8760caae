PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile
DEMO := tunetrial-demo

# Else each of hundreds of processes compiles the package, and each worker all tests, anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-slow test-gpu test-browser lint clean

# Full fine-tuning × LoRA on two built-in tasks with the embedded base; ends with the verdict and the report's path.
demo: $(VENV)/.installed
	$(BIN)/tunetrial demo --folder $(DEMO)

# Two processes of one thread each; the tests of a file stay together, and the longest files come first.
test: $(VENV)/.installed lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# Minutes each: whole simulated studies, long fault tests.
test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -q -m slow

# On a machine with a CUDA device.
test-gpu: $(VENV)/.installed
	$(BIN)/python -m pytest -q -m gpu

# With Debian's browser and driver: apt-get install chromium chromium-driver. Without them it fails and says so.
test-browser: $(VENV)/.installed
	$(BIN)/python -m pytest -q -m browser

lint: $(VENV)/.installed
	$(BIN)/ruff check src tools tests benchmarks
	$(BIN)/ruff format --check src tools tests benchmarks

# torch comes first and by exact number, so that an index that serves a CPU build of it is asked for just that one.
# Modules are compiled as they are first imported: pip would compile all of them, on one core.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist $(DEMO)

# Two commands: `make demo` and `make test`. Each sets up what it needs in .venv.
# TORCH_INDEX=https://download.pytorch.org/whl/cpu takes PyTorch from its CPU index (see README),
# and all that PyTorch needs from the usual one.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH_INDEX ?=
TORCH = $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX) --no-deps "$$(grep ^torch== constraints.txt)",-c constraints.txt torch)
DEMO_OUT ?= runs/demo
EXTRAS ?= cpu,tensorrt-rtx
JOBS ?= 2
# A file's tests share what they made; the files with the long ones come first, as they are named.
SPREAD = --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all check setup setup-dev clean

demo: $(VENV)/.ready
	$(BIN)/mcompress run demo --out $(DEMO_OUT)

test: $(VENV)/.ready-dev $(VENV)/.ready-serving
	$(BIN)/python -m pytest -m "not slow" -n $(JOBS) $(SPREAD)

test-all: $(VENV)/.ready-dev $(VENV)/.ready-serving
	$(BIN)/python -m pytest -n $(JOBS) $(SPREAD)

check: $(VENV)/.ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

setup: $(VENV)/.ready

setup-dev: $(VENV)/.ready-dev

$(VENV)/.torch: constraints.txt
	$(PYTHON) -c "import sys; sys.exit('mcompress needs Python 3.11 or newer; say which: make PYTHON=python3.11') if sys.version_info < (3, 11) else None"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet $(TORCH)
	touch $@

$(VENV)/.ready: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet -c constraints.txt --editable ".[$(EXTRAS)]"
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet -c constraints.txt --editable ".[$(EXTRAS),loadgen,openvino,vision,tensorboard]" --group dev
	touch $@

# The server of `export --layout kserve` needs other versions of psutil, pandas and protobuf than we do.
$(VENV)/.ready-serving: $(VENV)/.torch compress/shipping/serving/templates/constraints.txt
	$(PYTHON) -m venv $(VENV)/serving
	$(VENV)/serving/bin/python -m pip install --quiet -r compress/shipping/serving/templates/constraints.txt
	touch $@

clean:
	rm -rf $(VENV) runs

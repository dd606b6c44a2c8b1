# Two commands do everything: `make demo` and `make test`. CI runs the same targets.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
TIEREXPORT_TOOLS ?= $(HOME)/.cache/tierexport/tools
export TIEREXPORT_TOOLS
# llama.cpp's AMX kernels, as GCC compiles them, end in an illegal instruction (ggml-org/llama.cpp pull request 26954).
NO_AMX := $(shell $(CC) -mno-amx-int8 -E -x c /dev/null > /dev/null 2>&1 && echo -mno-amx-int8)
export CFLAGS += $(NO_AMX)
export CXXFLAGS += $(NO_AMX)
# Processes that run the tests, each on its share of the cores.
WORKERS ?= 2

.PHONY: demo test check bench docs tools clean

demo: .venv/installed  ## install, then build the default recipe on the default model, and a searched one beside it
	$(BIN)/tierexport build recipes/three_tier.toml
	$(BIN)/tierexport build searched/minilm_5.8
	$(BIN)/tierexport compare artifacts/all-MiniLM-L6-v2-three_tier artifacts/all-MiniLM-L6-v2-minilm_5.8 --picture artifacts/demo.svg
	@echo "Half of MiniLM is its token table, which three_tier keeps at fp16 as deep models can afford: the searched recipe," \
	  "of half its size, spends those bytes on the layers instead."

test: .venv/installed tools  ## the whole test suite
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

check: .venv/installed  ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/installed tools  ## performance, as ratios taken side by side
	$(BIN)/python benchmarks/encoding.py
	$(BIN)/python benchmarks/passages.py
	$(BIN)/python benchmarks/quantizing.py
	$(BIN)/python benchmarks/rounding.py
	$(BIN)/python benchmarks/deep.py
	$(BIN)/python benchmarks/scoring.py

docs: .venv/installed  ## the tables of docs/recipes.md, docs/models.md and docs/sizes.md, from the code and the tests
	$(BIN)/python -m tierexport.report.reference docs/recipes.md
	$(BIN)/python tests/families.py docs/models.md
	$(BIN)/python tests/shipped_models.py docs/sizes.md

tools: .venv/installed  ## llama.cpp's own programs, from the pinned archive, to compare with
	PYTHON=$(BIN)/python third_party/build_tools.sh $(TIEREXPORT_TOOLS)

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo,dev]'
	touch $@

clean:
	rm -rf .venv artifacts build dist .mypy_cache .ruff_cache .pytest_cache

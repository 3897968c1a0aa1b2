# `make bench` compares the methods, `make test` tests them. Each makes its own environment when it is missing.
PYTHON  ?= python3
VENV    ?= .venv
PROFILE ?= quick
JOBS    ?= 2
BIN     := $(VENV)/bin
READY   := $(VENV)/.ready
export HF_HUB_DISABLE_TELEMETRY = 1
export TOKENIZERS_PARALLELISM = false
# A run starts hundreds of processes: compiling torch and transformers in each would cost ten seconds every time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install bench check lint current quick test test-all notebooks tests docs pages lab constraints clean
help:
	@echo "make bench [PROFILE=quick|tiny] [JOBS=2]   compare the pruning methods"
	@echo "make check      two minutes: ruff, nbdev_export changes nothing, README is current, the quick tests"
	@echo "make test       twelve minutes: every library and method notebook, every test that is not slow"
	@echo "make test-all   every notebook and every test"
	@echo "make docs       build the site into _docs"
	@echo "make pages      execute the pages made of rows, write README.md"
	@echo "make lab        open the notebooks in JupyterLab"

install: $(READY)
$(READY): settings.ini setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet uv==0.13.8
	UV_FIND_LINKS="$${PIP_FIND_LINKS:-}" $(BIN)/uv pip install --quiet -p $(BIN)/python -c constraints.txt -e '.[dev]'
	touch $@

# ---- results ----

bench: $(READY)
	$(BIN)/pruneresearch bench --profile $(PROFILE) --jobs $(JOBS)
	$(if $(filter quick,$(PROFILE)),,$(BIN)/pruneresearch report --profile $(PROFILE))
	$(if $(filter tiny,$(PROFILE)),$(MAKE) pages)

# What is computed from the committed rows: results, answers, the landing page. A page is executed where its source or
# a row changed after the last time; what was executed is noted in runs/.
PAGES := $(addprefix nbs/benchmarks/,report.ipynb rows.ipynb) $(filter-out %/laptop_to_cluster.ipynb,$(wildcard nbs/guides/*.ipynb)) nbs/tutorials/read_a_leaderboard.ipynb nbs/index.ipynb
ROWS  := $(wildcard figures/*/*.json.gz figures/*/*.csv figures/*/*.md)
pages: $(READY)
	$(MAKE) -j $(JOBS) $(PAGES:%=runs/pages/%)
	$(BIN)/python docs/build.py readme

runs/pages/%: export PYTHONWARNINGS = ignore
runs/pages/%: % $(ROWS)
	$(BIN)/jupyter nbconvert --log-level ERROR --to notebook --execute --inplace $<
	$(BIN)/nbdev_clean --fname $<
	@mkdir -p $(@D) && touch $@

# ---- tests, in three tiers ----

# Two processes of one thread each: sums do not depend on it, and on two cores it is the fastest.
check test test-all quick notebooks tests: export OMP_NUM_THREADS ?= 1
PYTEST  := $(BIN)/python -m pytest -n 2 --dist worksteal --durations 10
# The tests that `make check` runs: rooms that need no training and no process of their own.
QUICK   ?= $(addprefix tests/test_,architecture.py cells.py site.py pruning_request.py methods_structured.py) $(filter-out %_engine.py,$(wildcard tests/test_data_metrics.py tests/test_model_anatomy.py tests/test_pruning_*.py))
# Notebooks that only `make test-all` runs.
LONGER  := ^([_.]|benchmarks|guides|tutorials)
SUMS    := find nbs pruneresearch -name '*.py' -exec cksum {} + -o -name '*.ipynb' -exec cksum {} + | sort -k 3

check: lint current quick

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

current: $(READY)
	@before="$$($(SUMS))"; $(BIN)/nbdev_export && $(BIN)/nbdev_clean || exit 1; after="$$($(SUMS))"; \
	if [ "$$before" != "$$after" ]; then \
	  echo "nbdev_export or nbdev_clean changed files: look at 'git status' and commit what they made."; exit 1; \
	fi
	$(BIN)/python docs/build.py readme --check

quick: $(READY)
	$(PYTEST) -m "not slow" $(QUICK)

test: $(READY)
	$(BIN)/nbdev_test --n_workers 2 --timing --skip_folder_re '$(LONGER)'
	$(PYTEST) -m "not slow"

test-all: notebooks tests

notebooks: $(READY)
	$(BIN)/nbdev_test --n_workers 2 --timing --flags slow

tests: $(READY)
	$(PYTEST)

# ---- the rest ----

docs: $(READY)
	$(BIN)/python docs/build.py site

lab: $(READY)
	$(BIN)/jupyter lab nbs --LabApp.default_url=/lab/tree/tutorials

constraints:
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --all-extras --no-header --no-annotate --no-emit-index-url --no-emit-find-links pyproject.toml -o constraints.txt

clean:
	rm -rf $(VENV) _docs _proc runs

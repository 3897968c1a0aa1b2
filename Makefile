# Two commands do everything: `make bench` and `make test`. Each makes its own environment when it is missing.
PYTHON  ?= python3
VENV    ?= .venv
PROFILE ?= tiny
JOBS    ?= 2
BIN     := $(VENV)/bin
READY   := $(VENV)/.ready
export HF_HUB_DISABLE_TELEMETRY = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: help install bench test docs pages lab constraints clean
help:
	@echo "make bench [PROFILE=tiny] [JOBS=2]   compare the pruning methods, write figures/PROFILE, and (but for smoke) the pages made of rows"
	@echo "make test                            run every notebook and every test"
	@echo "make docs                            build the site into _docs"
	@echo "make lab                             open the notebooks in JupyterLab"
	@echo "make pages [JOBS=2]                  execute the pages made of rows, write README.md"

install: $(READY)
$(READY): settings.ini setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet uv==0.13.8
	UV_FIND_LINKS="$${PIP_FIND_LINKS:-}" $(BIN)/uv pip install --quiet -p $(BIN)/python -c constraints.txt -e '.[dev]'
	touch $@

bench: $(READY)
	$(BIN)/pruneresearch bench --profile $(PROFILE) --jobs $(JOBS)
	$(BIN)/pruneresearch report --profile $(PROFILE)
	$(if $(filter smoke,$(PROFILE)),,$(MAKE) pages)

# Two processes of one thread each: sums do not depend on it, and on two cores it is the fastest.
test: export OMP_NUM_THREADS ?= 1
test: $(READY)
	$(BIN)/nbdev_test --n_workers 2
	$(BIN)/python -m pytest -n 2

docs: $(READY)
	$(BIN)/python docs/build.py site

# What is computed from the committed rows: results, answers, the landing page.
PAGES := $(addprefix nbs/benchmarks/,report.ipynb rows.ipynb) $(filter-out %/laptop_to_cluster.ipynb,$(wildcard nbs/guides/*.ipynb)) nbs/tutorials/read_a_leaderboard.ipynb nbs/index.ipynb
pages: export PYTHONWARNINGS = ignore
pages: $(READY)
	printf '%s\n' $(PAGES) | xargs -n 1 -P $(JOBS) $(BIN)/jupyter nbconvert --log-level ERROR --to notebook --execute --inplace
	$(BIN)/nbdev_clean
	$(BIN)/python docs/build.py readme

lab: $(READY)
	$(BIN)/jupyter lab nbs --LabApp.default_url=/lab/tree/tutorials

constraints:
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --all-extras --no-header --no-annotate --no-emit-index-url --no-emit-find-links pyproject.toml -o constraints.txt

clean:
	rm -rf $(VENV) _docs _proc runs

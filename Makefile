# make report   install into .venv, run every notebook on the embedded default, write reports/site/index.html
# make test     install, lint, unit tests, every notebook untouched, and prepared with small files, under nbval
# The rest:     lab  study  real  test-slow  lint  strip  lock  clean
# INSTALLER=pip where uv cannot be used; PYTHON=... for another interpreter (3.11 to 3.13).

PYTHON ?= python3
INSTALLER ?= uv
UV := uv==0.13.8
BIN := .venv/bin
NOTEBOOKS = $(sort $(wildcard notebooks/*.ipynb))
STRIP_KEYS := metadata.papermill metadata.widgets metadata.language_info cell.metadata.papermill cell.metadata.execution
NBSTRIPOUT = $(BIN)/nbstripout --keep-id --extra-keys "$(STRIP_KEYS)"

# Compiled once at install, read by every kernel: a set PYTHONDONTWRITEBYTECODE costs seconds at each start.
unexport PYTHONDONTWRITEBYTECODE
# Waiting threads sleep, and two workers of one thread are faster than one of two.
export OMP_WAIT_POLICY ?= PASSIVE
export OMP_NUM_THREADS ?= 1
export JUPYTER_PREFER_ENV_PATH = 1
# In the order of tests/longest_first.py, which xdist would change.
TWO_AT_A_TIME = -n 2 --dist loadfile --no-loadscope-reorder
# Tests of notebooks start from nothing and never touch the developer's artifacts.
TEST_FOLDER = $(CURDIR)/build/test
IN_TEST_FOLDER = CILKIT_ARTIFACTS="$(TEST_FOLDER)/artifacts" CILKIT_REPORT_DIR="$(TEST_FOLDER)/figures"

WITH_NBVAL = $(BIN)/python -m pytest -p tests.longest_first -p tests.dead_kernels -p tests.live_endpoint $(TWO_AT_A_TIME) \
  --nbval-lax --nbval-current-env --nbval-cell-timeout=600
# Notebooks in JupyterLab, by a browser: they find the artifacts that the notebooks' own tests made.
IN_LAB = tests/browser/test_notebooks.py

# What notebooks need; the tests also need the optional extras, which a newcomer does not wait for.
EXTRAS := lab,test
INSTALL_WITH_pip = $(BIN)/python -m pip install -c requirements.lock -e ".[$(EXTRAS)]"
# uv ignores pip's own configuration (a mirror, say): where it fails, pip may not.
INSTALL_WITH_uv = $(BIN)/python -m pip install --quiet $(UV) && \
  $(BIN)/uv pip install --python $(BIN)/python --compile-bytecode -c requirements.lock -e ".[$(EXTRAS)]" || \
  { echo "uv could not install; trying pip"; $(INSTALL_WITH_pip); }

.PHONY: report test test-units test-notebooks test-slow lab study real lint strip lock clean

report: .venv/.ok
	$(BIN)/cilkit report

test: lint test-units test-notebooks

test-units: .venv/.all
	$(BIN)/python -m pytest -p tests.longest_first tests $(TWO_AT_A_TIME) -m "not slow" --ignore=$(IN_LAB)

test-notebooks: .venv/.all
	rm -rf "$(TEST_FOLDER)"
	mkdir -p "$(TEST_FOLDER)"
	$(BIN)/python -m tests.small_notebooks "$(TEST_FOLDER)/notebooks"
	$(IN_TEST_FOLDER) $(WITH_NBVAL) -m "not slow" $(NOTEBOOKS) "$(TEST_FOLDER)/notebooks" $(IN_LAB)

test-slow: .venv/.all
	$(BIN)/python -m pytest tests -m slow --ignore=$(IN_LAB)
	$(BIN)/python -m tests.small_notebooks "$(TEST_FOLDER)/seldom" seldom
	$(IN_TEST_FOLDER) $(WITH_NBVAL) "$(TEST_FOLDER)/seldom"
	$(IN_TEST_FOLDER) $(BIN)/python -m pytest $(IN_LAB)

lab: .venv/.ok
	$(BIN)/jupyter lab --notebook-dir=notebooks

study: .venv/.ok
	$(BIN)/python scripts/study.py

real: .venv/.ok
	$(BIN)/python scripts/real_runs.py

lint: .venv/.ok
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(if $(NOTEBOOKS),$(NBSTRIPOUT) --verify $(NOTEBOOKS))

strip: .venv/.ok
	$(NBSTRIPOUT) $(NOTEBOOKS)

lock: .venv/.ok
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
	  --custom-compile-command "make lock" -o requirements.lock

clean:
	rm -rf build reports/site reports/runs reports/figures

# The stamp is touched last: an interrupted install is done again.
.venv/.ok: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "Python 3.11, 3.12 or 3.13 is needed, $(PYTHON) is not: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL_WITH_$(INSTALLER))
	touch $@

.venv/.all: EXTRAS := lab,test,llm,scale,lora
.venv/.all: .venv/.ok
	$(INSTALL_WITH_$(INSTALLER))
	touch $@

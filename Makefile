# Two commands: `make demo` trains, evaluates and draws; `make test` installs and tests everything.
PYTHON ?= python3
VENV   ?= .venv
DEMO   ?= runs/clip
# In a container one is root, which Jupyter wants to be told.
AS_ROOT = $(if $(filter 0,$(shell id -u)),--allow-root)

.PHONY: demo notebooks test lint constraints clean

demo:
	@bash scripts/venv.sh $(PYTHON) $(VENV) ""
	$(VENV)/bin/mixcon train --config configs/clip.py:small --workdir $(DEMO)
	$(VENV)/bin/mixcon report $(DEMO)

notebooks:
	@bash scripts/venv.sh $(PYTHON) $(VENV) dev,peers,notebooks
	$(VENV)/bin/jupytext --quiet --to ipynb --update $(shell grep -l '^# jupyter:' notebooks/*.py)
	$(VENV)/bin/jupyter lab $(AS_ROOT) notebooks/temperature.ipynb

test:
	@bash scripts/test.sh $(PYTHON) $(VENV) dev,peers,notebooks -m "not slow"

lint:
	@bash scripts/venv.sh $(PYTHON) $(VENV) dev,peers,notebooks
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

constraints:
	@bash scripts/constraints.sh $(VENV)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache

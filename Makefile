# `make` alone lists the targets.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
UV := $(VENV)/bin/uv
PY := $(VENV)/bin/python
BENCH := .venv-bench
AUDIT := .venv-audit
JOBS ?= 2
export PYTHONPATH := $(CURDIR)

.PHONY: help demo ui test faults soak corpus corpus-check fuzz test-scaleout bench bench-scale lint types format lock audit clean compose-check

help:  ## List the targets
	@grep -hE '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## */\t/' | expand -t 16

demo: $(VENV)/.installed  ## Install, make a bucket and a model, and run the pipeline twice
	@$(PY) -m demo

ui: $(VENV)/.installed  ## Airflow in the browser, with the demo's data
	@$(PY) -m demo.ui

# Most tests share a machine well. What starts an Airflow, a farm or a browser has it to itself.
test: $(VENV)/.installed-dev lint types  ## Lint, types and all tests
	$(PY) -m pytest -n $(JOBS) --dist loadfile -m "not alone"
	$(PY) -m pytest -m alone

faults: $(VENV)/.installed-dev  ## Inject every fault, and print the table of docs/reliability.md
	@mkdir -p var && rm -f var/faults.jsonl
	AFTERIMAGE_TEST_FAULTS=$(CURDIR)/var/faults.jsonl $(PY) -m pytest tests/faults
	@$(PY) -m tests.faults.record var/faults.jsonl

corpus: $(VENV)/.installed-dev  ## Fetch Pillow's own test images into var/corpus
	@$(PY) -m tests.fuzz.corpus

corpus-check: corpus  ## Run over them, and over 5,000 damaged files
	AFTERIMAGE_TEST_MUTATED=5000 $(PY) -m pytest -s tests/faults/test_corpora.py

fuzz: $(VENV)/.installed-dev  ## Damage files and decode them: make fuzz MINUTES=10
	@$(PY) -m tests.fuzz.loop $(or $(MINUTES),10) $(SEED)

soak: $(VENV)/.installed-dev  ## Runs side by side under random faults: make soak MINUTES=30
	$(PY) -m tests.faults.soak --minutes $(or $(MINUTES),30)

test-scaleout: $(VENV)/.installed-dev  ## Only the tests on several workers, which make test has too
	$(PY) -m pytest -s $(addprefix tests/integration/test_,$(addsuffix .py,celery ray processes))

# The whole of it takes hours; ARGS="decode --rounds 3" takes one row. benchmarks/README.md tells the rest.
bench: $(VENV)/.installed $(BENCH)/.installed  ## Measure beside DataLoader, Ray Data, Daft and SPDL, and print the table
	@$(PY) -m benchmarks $(ARGS)

# Ten million images in a PostgreSQL of its own: a quarter of an hour, and 6 GB of disk.
bench-scale: $(VENV)/.installed-dev  ## Measure listing and the cache with millions of objects, and print the table
	@$(PY) -m benchmarks.scale $(ARGS)

lint: $(VENV)/.installed-dev  ## ruff
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.installed-dev  ## mypy --strict
	$(VENV)/bin/mypy

format: $(VENV)/.installed-dev  ## Let ruff mend what it can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

compose-check: $(VENV)/.installed-dev  ## Check docker-compose.yaml, Dockerfile, .env.example and deploy/kubernetes
	$(PY) -m pytest $(addprefix tests/unit/test_,$(addsuffix .py,compose compose_profiles scripts image monitoring kubernetes))

# requirements-uv.txt comes first in a new environment, so it is compiled by the uv that is there.
lock: $(UV)  ## Pin every package with hashes, for Python 3.11, 3.12 and 3.13
	$(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate \
		--custom-compile-command "make lock" requirements.in -o requirements.txt
	$(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate \
		--custom-compile-command "make lock" requirements-core.in -c requirements.txt -o requirements-core.txt
	$(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate \
		--custom-compile-command "make lock" requirements-dev.in -o requirements-dev.txt
	$(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate \
		--custom-compile-command "make lock" requirements-uv.in -o requirements-uv.txt
	$(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate \
		--custom-compile-command "make lock" requirements-sbom.in -o requirements-sbom.txt
	$(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate \
		--custom-compile-command "make lock" requirements-bench.in -o requirements-bench.txt
	$(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate \
		--custom-compile-command "make lock" requirements-audit.in -o requirements-audit.txt

	for extra in nncf pruning timm onnx ray tensorrt; do \
		$(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate \
			--custom-compile-command "make lock" extras/$$extra.in -o extras/$$extra.txt || exit 1; done

# It asks a public service, so it is no part of make test: there a new report would stop work that has nothing to do with it.
audit: $(AUDIT)/.installed  ## Ask for known vulnerabilities of every locked package
	@failed=0; for file in requirements.txt requirements-dev.txt requirements-bench.txt extras/*.txt; do \
		echo "$$file:"; \
		$(AUDIT)/bin/pip-audit --strict --progress-spinner off --require-hashes --disable-pip -r $$file || failed=1; done; \
	test $$failed = 0 || { echo "make audit: a package has a known vulnerability, or the service could not be asked about it: the lines above say which." >&2; exit 1; }

# nncf, pruning, timm, onnx, ray or tensorrt: what each is for stands in extras/NAME.in.
extra-%: $(VENV)/.installed  ## Install an extra: make extra-nncf
	$(UV) pip install -q --python $(PY) --require-hashes -r extras/$*.txt

clean:  ## Remove what the demo and the tests left; the environment stays
	rm -rf var .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(UV): requirements-uv.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed, and none is on the PATH. Set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --disable-pip-version-check --require-hashes -r requirements-uv.txt
	@touch $(UV)

$(VENV)/.installed: $(UV) requirements.txt
	$(UV) pip install -q --python $(PY) --require-hashes -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(UV) pip install -q --python $(PY) --require-hashes -r requirements-dev.txt
	@touch $@

$(AUDIT)/.installed: $(UV) requirements-audit.txt
	$(UV) venv -q --allow-existing --python $(PY) $(AUDIT)
	$(UV) pip install -q --python $(AUDIT)/bin/python --require-hashes -r requirements-audit.txt
	@touch $@

# The peers need other versions than we do, so they live in an environment of their own.
$(BENCH)/.installed: $(UV) requirements-bench.txt
	$(UV) venv -q --allow-existing --python $(PY) $(BENCH)
	$(UV) pip install -q --python $(BENCH)/bin/python --require-hashes -r requirements-bench.txt
	@touch $@

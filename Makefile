# The two commands of the README are `make demo` and `make test`; `make` alone lists all of them.
# Everything runs as `.venv/bin/python -m ...` with paths relative to this folder: a script in .venv/bin has an absolute
# first line, which breaks in a path with a space or beyond 127 characters.

SHELL = /bin/sh
PY = .venv/bin/python
ENVIRONMENT = @sh deploy/dev/python.sh deploy/dev/environment.py
# Two at a time: the tests of real processes wait more than they work.
PYTEST = $(PY) -m pytest -n 2

# A font list is built once and kept here, also where HOME cannot be written to.
export MPLCONFIGDIR = $(CURDIR)/build/matplotlib

help:
	@echo 'make demo      train on real digits on a local cluster: 2 servers, 2 workers'
	@echo 'make test      the tests that need no root, no torch and no network (ARGS="..." goes to pytest)'
	@echo 'make test-all  these and the large ones'
	@echo 'make check     ruff, mypy --strict, house rules, generated code is current'
	@echo 'make bench     benchmarks with their floors and peers (ARGS="..." chooses)'
	@echo 'make proto     generate the protobuf code again'
	@echo 'make clean     remove .venv, build/ and caches; runs/ stays'

demo:
	$(ENVIRONMENT) plot
	@$(PY) -m windlass run --workers 2 --servers 2 examples/digits.py $(ARGS)

test:
	$(ENVIRONMENT) test
	@$(PYTEST) $(ARGS)

test-all:
	$(ENVIRONMENT) test-all
	@WINDLASS_TEST_ALL=1 $(PYTEST) $(ARGS)

check:
	$(ENVIRONMENT) dev protoc
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PYTEST) -q tests/test_tidy.py
	build/protoc/bin/python proto/generate.py --check

bench:
	$(ENVIRONMENT) bench
	@$(PY) -m benchmarks $(ARGS)

proto:
	$(ENVIRONMENT) protoc
	build/protoc/bin/python proto/generate.py

clean:
	rm -rf .venv build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find proto client server scheduler worker tests examples benchmarks deploy -name __pycache__ -exec rm -rf {} + 2>/dev/null || true

.PHONY: help demo test test-all check bench proto clean

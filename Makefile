# `make run` and `make test` are all that a newcomer needs; `make help` lists the rest.
VENV := .venv
PY := $(VENV)/bin/python

engine: ## build the engine and put it beside the Python package
	cd engine && cargo build --release -p vs-py
	cp engine/target/release/lib_engine.so vswitchd/_engine.abi3.so

proto: ## generate the gRPC stubs
	$(PY) proto/generate.py

.PHONY: engine proto

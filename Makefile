# make demo  one photograph through a real server; writes out.jpg
# make demo-ui  the page of a real server on http://127.0.0.1:8080/ until Ctrl-C
# make test  every check and every test
# Both make their own environment in .venv; only Python 3.11 and make are needed.

PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
INPUTS := pyproject.toml constraints.txt
export TF_CPP_MIN_LOG_LEVEL ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo demo-ui test check stubs docs format faults fuzz soak fairness bench-peers bench-graph bench-serving bench-batch bench-report gpu-check clean

help:
	@sed -n 's/^# //p' Makefile | head -4
	@echo 'make check  ruff, the imports, mypy, the stubs, the tables in docs/, the Dockerfile, the wheel'
	@echo 'make stubs  the stubs from proto/'
	@echo 'make docs   the tables of flags, metrics and modules in docs/'
	@echo 'make format what can be repaired'
	@echo 'make faults REQUESTS=10000    a storm of clients that cancel, time out and are killed'
	@echo 'make fuzz FUZZ_INPUTS=200000  the image decoder and all messages, with atheris'
	@echo 'make soak MINUTES=10          memory, descriptors and threads at saturation'
	@echo 'make fairness                 interactive latency beside an offline stream; OTHERS=pixels: beside floods'
	@echo 'make bench-graph              ways to the same answer: ours, torch, ONNX Runtime, OpenVINO'
	@echo 'make bench-serving MODEL=resnet50  our server beside LitServe, mosec, Ray Serve and Triton'
	@echo 'make bench-batch              an offline job beside its bare graph'
	@echo 'make gpu-check                what is claimed of GPUs, in minutes; build/gpu-check/ runs without TensorFlow'
	@echo 'make bench-report             the tables and plots of benchmarks/README.md'

demo: $(VENV)/demo.stamp
	@$(BIN)/python scripts/demo.py

UI_PORT ?= 8080
demo-ui: $(VENV)/demo.stamp
	@echo 'Open http://127.0.0.1:$(UI_PORT)/ once the log says Serving; Ctrl-C ends the server.'
	@$(BIN)/gradcam serve --model efficientnet-lite0 --port 0 --http-port $(UI_PORT) --ui

test: check
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

check: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy
	$(BIN)/python scripts/generate_stubs.py --check
	$(BIN)/python scripts/update_docs.py --check
	$(BIN)/hadolint Dockerfile deploy/ray/Dockerfile
	$(BIN)/python -m build --wheel --outdir build . > /dev/null

stubs: $(VENV)/dev.stamp
	$(BIN)/python scripts/generate_stubs.py

docs: $(VENV)/dev.stamp
	$(BIN)/python scripts/update_docs.py

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

REQUESTS ?= 10000
faults: $(VENV)/dev.stamp
	FAULT_REQUESTS=$(REQUESTS) $(BIN)/python -m pytest tests/faults

FUZZ_INPUTS ?= 200000
fuzz: $(VENV)/dev.stamp
	$(PIP) install -c constraints.txt -e '.[fuzz]'
	PYTHONPATH=tests $(BIN)/python -m fuzz --inputs $(FUZZ_INPUTS)

MINUTES ?= 10
soak: $(VENV)/dev.stamp
	PYTHONPATH=tests $(BIN)/python benchmarks/soak.py --minutes $(MINUTES)

fairness: $(VENV)/dev.stamp
	PYTHONPATH=tests $(BIN)/python benchmarks/fairness.py --others $(or $(OTHERS),offline)

RESULTS := benchmarks/results
MODEL   ?= resnet50
WEIGHTS ?= $(if $(filter resnet50,$(MODEL)),random,imagenet)
EXPORT  := build/bench/$(MODEL)
BENCH   := PYTHONPATH=tests:benchmarks $(BIN)/python benchmarks

bench-peers: $(VENV)/dev.stamp
	$(PIP) install -c constraints.txt -e '.[bench-peers]'

bench-graph: bench-peers
	$(BENCH)/graph_peers.py --output $(RESULTS)/graph.json

bench-serving: bench-peers
	mkdir -p build/bench && rm -rf $(EXPORT) $(EXPORT)-cache
	$(BIN)/gradcam export --model $(MODEL) --weights $(WEIGHTS) -o $(EXPORT)
	test -e $(EXPORT)-hand-made/model.onnx || PYTHONPATH=tests:benchmarks \
		$(BIN)/python -m peers.hand_made $(MODEL) $(WEIGHTS) $(EXPORT)-hand-made
	$(BENCH)/serving_peers.py --workers 1,2 $(if $(TRITON_PYTHON),--python triton=$(TRITON_PYTHON)) \
		--hand-made $(EXPORT)-hand-made --neighbour \
		--overload $(RESULTS)/overload_peers_$(MODEL).json \
		--output $(RESULTS)/serving_peers_$(MODEL).json -- \
		--model $(MODEL)=$(EXPORT) --cache-dir $(EXPORT)-cache

bench-batch: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/make_images.py build/images
	$(BIN)/python benchmarks/batch.py build/images --count 5000 --output $(RESULTS)/batch.json

bench-report:
	$(BIN)/gradcam bench report $(RESULTS)/graph.json $(sort $(wildcard $(RESULTS)/serving*.json)) \
		$(sort $(wildcard $(RESULTS)/overload_peers*.json)) -o benchmarks/README.md

GPU_CHECK := build/gpu-check
gpu-check: $(VENV)/dev.stamp
	PYTHONPATH=tests:benchmarks $(BIN)/python -m gpu_check.bundle $(GPU_CHECK)
	$(BIN)/python $(GPU_CHECK)/run.py --out $(GPU_CHECK)-results

clean:
	rm -rf $(VENV) .cache build dist out.jpg

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: $(INPUTS) | $(BIN)/python
	@echo 'Installing into $(VENV) (once)...'
	$(PIP) install -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/dev.stamp: $(INPUTS) | $(BIN)/python
	@echo 'Installing into $(VENV) (once)...'
	$(PIP) install -c constraints.txt -e '.[demo,test,dev]'
	@touch $@ $(VENV)/demo.stamp

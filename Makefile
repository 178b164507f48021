# make demo: pretrain and evaluate on embedded data in minutes.   make demo-clip: the same with captions.
# make test: the tests.   make test-all: all of them.
PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/digits
PY := $(VENV)/bin/python
# Two processes, as most of a test is compiling, on one core.
TWO := -n 2 --dist worksteal

.PHONY: demo demo-clip test test-all clean

# The environment follows requirements.txt: it is brought up to date when that changes.
$(VENV)/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "error: Python " + sys.version.split()[0] + " found, wanted 3.11 or newer; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet -e .
	@touch $@

demo: $(VENV)/.installed
	$(PY) -m simclr_jax.train --config=configs/simclr_digits.py --workdir=$(RUN)
	$(PY) -m simclr_jax.evals --workdir=$(RUN)
	@printf '%s\n' '' 'Try next:' \
	  '  $(PY) -m simclr_jax.train --config=configs/simclr_folder.py --config.data.root=DIR --workdir=runs/mine   # your own pictures' \
	  '  $(PY) -m simclr_jax.train --config=configs/simclr_cifar10.py --workdir=runs/c10                          # CIFAR-10 by TFDS' \
	  '  make test'

demo-clip: $(VENV)/.installed
	@set -e; for loss in clip siglip; do \
	  $(PY) -m simclr_jax.train --config=configs/clip_digits.py:loss=$$loss --workdir=$(RUN)_$$loss; \
	  $(PY) -m simclr_jax.evals --workdir=$(RUN)_$$loss; \
	done
	$(PY) -m simclr_jax.evals --workdir=$(RUN)_siglip --search="a thin seven"
	@printf '%s\n' '' 'Try next:' \
	  '  $(PY) -m simclr_jax.evals --workdir=$(RUN)_clip --search="a small zero"' \
	  '  $(PY) -m simclr_jax.train --config=configs/siglip_folder.py --config.data.root=DIR --workdir=runs/mine   # your own captions' \
	  '  docs/image_text.md'

test: $(VENV)/.installed
	$(PY) -m pytest -m "not slow" $(TWO)

test-all: $(VENV)/.installed
	$(PY) -m pytest $(TWO)

clean:
	rm -rf $(VENV) build dist *.egg-info

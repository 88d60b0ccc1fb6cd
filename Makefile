PYTHON ?= python3
RUN = demo/run

.PHONY: demo test
demo: .venv/installed
	.venv/bin/python demo/problems.py --output $(RUN)/problems.jsonl
	.venv/bin/python extract_activations.py --model demo/model --dataset $(RUN)/problems.jsonl --positions 0-6 \
		--batch-size 128 --activations $(RUN)/activations
	.venv/bin/python train_all_layers_positions.py --latent-dims 128 256 512 \
		--activations $(RUN)/activations --results $(RUN)/results
	.venv/bin/python analyze_all_layers.py --latent-dim 256 --results $(RUN)/results
	.venv/bin/python visualize_all_layers.py --latent-dim 256 --results $(RUN)/results
	.venv/bin/python demo/tell_findings.py --results $(RUN)/results

test: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/pytest

.venv/installed: pyproject.toml requirements.txt requirements-cluster.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet -r requirements-dev.txt
	touch $@

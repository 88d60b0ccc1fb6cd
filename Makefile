PYTHON ?= python3
RUN = demo/run

.PHONY: demo evidence test test-exports
demo: .venv/installed
	.venv/bin/python demo/problems.py --output $(RUN)/problems.jsonl
	.venv/bin/python extract_activations.py --model demo/model --dataset $(RUN)/problems.jsonl --positions 0-6 --answers \
		--batch-size 128 --activations $(RUN)/activations
	.venv/bin/python train_all_layers_positions.py --recipe improved --latent-dims 128 256 512 --gaussian-control \
		--activations $(RUN)/activations --results $(RUN)/results
	.venv/bin/python train_all_layers_positions.py --no-checkpoints --latent-dims 128 256 512 \
		--activations $(RUN)/activations --results $(RUN)/published
	.venv/bin/python demo/problems.py --split test --n-problems 200 --output $(RUN)/test.jsonl
	.venv/bin/python substitute_thoughts.py --model demo/model --dataset $(RUN)/test.jsonl --latent-dims 256 --layers 1 \
		--activations $(RUN)/activations --results $(RUN)/results
	.venv/bin/python edit_features.py --model demo/model --dataset $(RUN)/test.jsonl --latent-dim 256 --k 5 --layers 1 \
		--positions 3 --steps 3 --activations $(RUN)/activations --results $(RUN)/results
	.venv/bin/python interpret_features.py --model demo/model --latent-dim 256 --k 5 --all-configurations \
		--activations $(RUN)/activations --results $(RUN)/results
	.venv/bin/python analyze_all_layers.py --latent-dim 256 --results $(RUN)/results
	.venv/bin/python visualize_all_layers.py --latent-dim 256 --results $(RUN)/results
	ln -sfn results $(RUN)/improved # as whose name the comparison is to tell it
	.venv/bin/python compare_runs.py --recipes $(RUN)/published $(RUN)/improved --output $(RUN)/recipes.md \
		--figure $(RUN)/recipes.png > /dev/null
	.venv/bin/python demo/tell_findings.py --results $(RUN)/results
	@echo "What the published recipe gives instead: $(RUN)/recipes.md"

# results/demo anew, all that is measured on the demo model: some 25 minutes on two cores, `make demo` included.
EVIDENCE = results/demo
evidence: demo
	cp -r $(RUN)/results $(RUN)/evidence && rm -f $(RUN)/evidence/substitution.json $(RUN)/evidence/edits.json
	.venv/bin/python demo/problems.py --split test --n-problems 500 --output $(RUN)/test_500.jsonl
	.venv/bin/python substitute_thoughts.py --model demo/model --dataset $(RUN)/test_500.jsonl \
		--activations $(RUN)/activations --results $(RUN)/evidence
	.venv/bin/python edit_features.py --model demo/model --dataset $(RUN)/test_500.jsonl --latent-dim 256 --k 5 \
		--n-features 3 --activations $(RUN)/activations --results $(RUN)/evidence
	.venv/bin/python train_all_layers_positions.py --latent-dims 128 256 512 \
		--activations $(RUN)/activations --results $(RUN)/published
	.venv/bin/python interpret_features.py --latent-dim 256 --k 5 --all-configurations \
		--activations $(RUN)/activations --results $(RUN)/published
	.venv/bin/python compare_runs.py --recipes $(RUN)/published $(RUN)/improved --output $(EVIDENCE)/recipes.md \
		--figure $(EVIDENCE)/recipes.png > /dev/null
	RUN=$(RUN) OUTPUT=$(RUN)/evidence PYTHON=.venv/bin/python sh demo/transfer.sh
	.venv/bin/python analyze_all_layers.py --latent-dim 256 --results $(RUN)/evidence --output $(EVIDENCE)
	.venv/bin/python visualize_all_layers.py --latent-dim 256 --results $(RUN)/evidence --output $(EVIDENCE)
	cp $(RUN)/evidence/substitution.json $(RUN)/evidence/edits.json $(RUN)/evidence/transfer_*.json $(EVIDENCE)
	cp $(RUN)/evidence/features/coverage.csv $(EVIDENCE)/concept_coverage.csv
	RUN=$(RUN) OUTPUT=$(EVIDENCE)/early PYTHON=.venv/bin/python sh demo/errors.sh

test: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/pytest

# Each library's own loader reads what was exported for it. SPARSIFY_DISABLE_TRITON: its kernels are for a GPU.
test-exports: .venv-exports/installed
	SPARSIFY_DISABLE_TRITON=1 .venv-exports/bin/python -m pytest -o addopts=-q tests/exports/proof_by_the_libraries.py

.venv-exports/installed: requirements-exports.txt
	$(PYTHON) -m venv .venv-exports
	.venv-exports/bin/pip install --quiet -r requirements-exports.txt
	.venv-exports/bin/pip uninstall --quiet --yes torchvision # built for one build of torch only, and nothing needs it
	touch $@

.venv/installed: pyproject.toml requirements.txt requirements-cluster.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet -r requirements-dev.txt
	touch $@

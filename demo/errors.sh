# Do thoughts foretell errors? On the early state of the demo model, which errs; 2,000 problems of six steps at most.
# From the project's folder, after `make demo`: RUN=demo/run OUTPUT=results/demo/early sh demo/errors.sh
set -e
PYTHON=${PYTHON:-python}
early=$RUN/early
$PYTHON extract_activations.py --model demo/model_early --dataset $RUN/problems.jsonl --positions 1,3,5 \
    --batch-size 128 --activations $early/activations
$PYTHON train_all_layers_positions.py --recipe improved --latent-dims 256 --activations $early/activations \
    --results $early/results
$PYTHON demo/problems.py --split test --n-problems 2000 --output $early/test.jsonl
$PYTHON extract_activations.py --model demo/model_early --dataset $early/test.jsonl --positions 1,3,5 --answers \
    --batch-size 128 --activations $early/activations_test
$PYTHON predict_errors.py --activations $early/activations_test --training $early/activations --results $early/results
$PYTHON analyze_all_layers.py --latent-dim 256 --results $early/results --output $OUTPUT
$PYTHON visualize_all_layers.py --latent-dim 256 --results $early/results --output $OUTPUT
cp $early/results/error_prediction.json $OUTPUT

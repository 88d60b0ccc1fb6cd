# The demo's SAEs on problems told otherwise, shorter, longer, and, as a control, on others of the same kind.
# From the project's folder, after `make demo`: RUN=demo/run OUTPUT=demo/run/evidence sh demo/transfer.sh
set -e
PYTHON=${PYTHON:-python}
train() { $PYTHON train_all_layers_positions.py --recipe improved --latent-dims 256 --k-values 5 20 "$@"; }

for seed in 0 1 2; do train --seed $seed --activations $RUN/activations --results $RUN/transfer/home_seed$seed; done
for kind in other shorter longer control; do
    case $kind in
        other) flags="--phrasing other" ;;
        shorter) flags="--max-steps 3" ;;
        longer) flags="--max-steps 8" ;;
        control) flags="" ;;
    esac
    there=$RUN/transfer/$kind
    $PYTHON demo/problems.py --split test $flags --output ${there}_problems.jsonl
    $PYTHON extract_activations.py --model demo/model --dataset ${there}_problems.jsonl --positions 0-6 --answers \
        --batch-size 128 --activations ${there}_activations
    for seed in 0 1 2; do
        train --seed $seed --activations ${there}_activations --results ${there}_seed$seed
        $PYTHON evaluate_transfer.py --results $RUN/transfer/home_seed$seed --from-activations $RUN/activations \
            --activations ${there}_activations --against ${there}_seed$seed --output $OUTPUT --name $kind-seed$seed
    done
done

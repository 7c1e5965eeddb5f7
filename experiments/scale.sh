#!/usr/bin/env bash
# Models of GPT-2's kind at a block of 1,024, on a GPU, in minutes: rope, alibi, nope and the
# hybrid, evaluated to 16 times that length.
#
#   scale.sh [SIZE ...]     30M, 124M (default: both); ENCODINGS, SEEDS, STEPS and DATA may be set
#
# Stop it and start it again at any point: finished runs and measured cells are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

seeds=${SEEDS:-1337}
encodings=${ENCODINGS:-rope alibi nope hybrid}
steps=${STEPS:-300} # of 32,768 tokens: four times the 2.4 million of the books
data=${DATA:-books-gpt2}
export WANDB_MODE=disabled

for size in ${@:-30M 124M}; do
    case $size in
    30M) shape="--n_layer=6 --n_head=6 --n_embd=384 --batch_size=32" ;;
    124M) shape="--n_layer=12 --n_head=12 --n_embd=768 --batch_size=8 --gradient_accumulation_steps=4" ;;
    *) echo "scale.sh: no size $size; 30M and 124M are there" >&2 && exit 2 ;;
    esac
    for seed in $seeds; do
        for pos in $encodings; do
            run=out/scale/$size-$pos-$seed
            if [ ! -e "$run.done" ]; then
                [ -e "$run/ckpt.pt" ] && resume=--resume || resume=
                # shellcheck disable=SC2086 # flags are split into words on purpose
                python train.py "configs/$pos.py" --name="$size-$pos" --out_dir="$run" \
                    --dataset="$data" --vocab_size=50304 --block_size=1024 $shape $resume \
                    --max_iters="$steps" --warmup_iters=30 --learning_rate=1e-3 --min_lr=1e-4 \
                    --beta2=0.95 --eval_interval=100 --eval_tokens=65536 --log_interval=25 \
                    --seed="$seed" $([ $pos = hybrid ] && echo --window=256)
                touch "$run.done"
            fi
            how=
            [ $pos != rope ] || how="--rope_scaling none,linear,ntk,yarn,dynamic_yarn"
            # shellcheck disable=SC2086
            python evaluate.py "$run" $how --lengths 256,512,1x,2x,4x,8x,16x --tokens 2048 \
                --window_tokens 65536 --json results/scale.jsonl
        done
    done
done

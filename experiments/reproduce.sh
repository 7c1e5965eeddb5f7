#!/usr/bin/env bash
# Trains, evaluates and draws every number, table and figure of README.md and docs/results.md.
# Stop it and start it again at any point: finished runs and measured cells are skipped. After a
# change to a config, remove its runs in out/ first.
# shellcheck disable=SC2046,SC2059,SC2086 # lists are split into words on purpose
set -euo pipefail
cd "$(dirname "$0")/.."

seeds=${SEEDS:-1337 1 2}
jobs=${JOBS:-$(getconf _NPROCESSORS_ONLN)} # a process a core is faster than a core more a process
encodings="rope learned sinusoidal alibi nope"
methods="none linear ntk yarn"
export OMP_NUM_THREADS=1

train() { # FOLDER [setting ...]
    log=out/logs/${1#out/}.txt
    [ ! -e "$log.done" ] || return 0
    [ ! -e "$1/ckpt.pt" ] && [ ! -e "$1/ckpt.prev.pt" ] || set -- "$@" --resume
    echo "training $1"
    python train.py --device=cpu --out_dir="$@" >>"$log" 2>&1 ||
        tail -n 1 "$log" | grep -q "already; raise max_iters" || { tail -n 3 "$log"; return 1; }
    touch "$log.done"
}

evaluate() { # FOLDER [flag ...]
    echo "evaluating $1"
    log=out/logs/${1#out/}.txt
    python evaluate.py --device=cpu "$@" >>"$log" 2>&1 || { tail -n 3 "$log"; return 1; }
}
export -f train evaluate
together() { tr '\n' '\0' | xargs -0 -n 1 -P "$jobs" bash -c; } # the lines of stdin, on all cores
mkdir -p out/logs

for name in shakespeare passkey passkey-4x; do python -m data.prepare $name; done

{ # the longest first, so that no core waits long for the last
    for seed in $seeds; do
        echo "train out/rope-4x-$seed configs/rope.py configs/longer.py --name=rope-4x --seed=$seed"
    done
    for seed in $seeds; do
        for e in $encodings; do echo "train out/$e-$seed configs/$e.py --seed=$seed"; done
    done
    for seed in $seeds; do
        for e in $encodings; do
            echo "train out/passkey-$e-$seed configs/passkey.py configs/$e.py --seed=$seed"
        done
    done
} | together

for seed in $seeds; do
    for m in $methods; do
        how="--rope_scaling=$m --seed=$seed"
        echo "train out/finetune-$m-$seed configs/rope.py configs/finetune.py" \
            "--name=finetune-$m --init_from=out/rope-$seed $how"
        echo "train out/passkey-finetune-$m-$seed configs/passkey.py configs/rope.py" \
            "configs/finetune_passkey.py --name=passkey-finetune-$m" \
            "--init_from=out/passkey-rope-$seed $how"
    done
done | together

lengths=64,128,256,512,1024,2048,4096
prose="--json results/prose.jsonl --window_tokens 16384 --lengths $lengths"
passkey="--json results/passkey.jsonl --task passkey --keys 100 --against passkey-rope --lengths 128,256,512,1024"
tuned=$(printf 'finetune-%s ' $methods)
runs() { for name in $1; do printf "out/$2$name-%s\n" $seeds; done; } # all seeds of each name
{
    for run in $(runs "$encodings $tuned" ""); do echo "evaluate $run $prose"; done
    for run in $(runs rope-4x ""); do echo "evaluate $run $prose --rope_scaling none"; done
    for run in $(runs "$encodings $tuned" passkey-); do echo "evaluate $run $passkey"; done
} | together

# Everything is measured now: the tables on the terminal, then the figures and the pages.
python evaluate.py $(runs "$encodings $tuned" "") $prose
python evaluate.py $(runs rope-4x "") $prose --rope_scaling none
python evaluate.py $(runs "$encodings $tuned" passkey-) $passkey
python -m experiments.report --training $(runs "$encodings rope-4x $tuned" "")
echo "done after $((SECONDS / 60)) minutes"

#!/usr/bin/env bash
# Trains, evaluates and draws the numbers, tables and figures of README.md and docs/.
#
#   reproduce.sh quick         six encodings, one seed, few steps, one figure: a first look
#   reproduce.sh full          everything, three seeds: many hours
#   reproduce.sh full PART     one part of it: main, claims, more-claims, encodings, training,
#                              tasks, more-tasks, read-time, hybrid or tokens; main is first
#
# Stop it and start it again at any point: finished runs and measured cells are skipped. After a
# change to a config, remove its runs in out/ first.
# shellcheck disable=SC2046,SC2059,SC2086 # lists are split into words on purpose
set -euo pipefail
cd "$(dirname "$0")/.."

seeds=${SEEDS:-1337 1 2}
jobs=${JOBS:-$(getconf _NPROCESSORS_ONLN)} # a process a core is faster than a core more a process
encodings="rope learned sinusoidal alibi nope" # of README.md; all others are in the part encodings
methods="none linear ntk yarn"
export OMP_NUM_THREADS=1
# Large pages make training and evaluation 7 to 9 % faster and change no bit of the results.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}

train() { # FOLDER [setting ...]
    log=out/logs/${1#out/}.txt
    mkdir -p "$(dirname "$log")"
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
runs() { for name in $1; do printf "out/$2$name-%s\n" $seeds; done; } # all seeds of each name
prepare() { for name in "$@"; do python -m data.prepare $name; done; }

main() {
    prepare shakespeare passkey passkey-4x
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
}

scripts() { # SEEDS NAME ...: scripts of experiments/claims/, prose and retrieval side by side
    count=$1
    shift
    for name in "$@"; do
        for task in prose keys; do
            echo "python -m experiments.claims.$name --task=$task --seeds=$count"
        done
    done | together
}

position_tasks() { # SEEDS
    prepare mixture
    for i in $(seq $jobs); do
        echo "python -m experiments.claims.position_tasks --seeds=$1 --share=$i/$jobs"
    done | together
}

part() {
    case $1 in
    main) main ;;
    claims)
        python -m experiments.claims.identities
        scripts 3 finetune scalings amplitude precision temperature which_planes naive_yarn
        ;;
    more-claims)
        scripts 3 base linear_attention gqa kv_cache rerope
        python -m experiments.claims.linear_attention # once more, alone: the cost of a token
        ;;
    encodings) scripts 3 encodings drope ;;
    training) scripts 3 trained_frequencies train_positions t5_biases gates ;;
    read-time)
        python -m experiments.claims.long_tokens
        python -m experiments.claims.cost # alone: other work would share its time
        scripts 3 logit_scale remapping
        ;;
    tasks) position_tasks 1 ;;
    more-tasks) position_tasks 3 ;;
    hybrid) scripts 1 hybrid ;; # the grid has one seed
    tokens) scripts 1 tokens optimizer ;;
    *) echo "reproduce.sh: no part $1; see the head of the file" >&2 && return 2 ;;
    esac
    echo "part $1 done after $((SECONDS / 60)) minutes"
}

quick() {
    names="$encodings hybrid"
    tasks="passkey multikey overwrite copy locate-recurrent"
    prepare shakespeare mixture
    few="--max_iters=400 --warmup_iters=40 --eval_interval=400 --eval_tokens=8192"
    {
        for e in $names; do echo "train out/quick/$e configs/$e.py $few"; done
        for e in $names; do
            w=$([ $e = hybrid ] && echo --window=32 || true) # a quarter of the trained length
            echo "train out/quick/mixture-$e configs/mixture.py configs/$e.py --name=$e --max_iters=1500 $w"
        done
    } | together
    common="--rope_scaling none --wandb disabled"
    {
        for e in $names; do
            echo "evaluate out/quick/$e --json out/quick/prose.jsonl --tokens 512 --window_tokens 4096 --lengths 1x,2x,4x,8x $common"
            for t in $tasks; do
                echo "evaluate out/quick/mixture-$e --json out/quick/$t.jsonl --task $t --keys 50 --lengths 1x,2x,4x $common"
            done
        done
    } | together
    python -m experiments.quick out/quick out/quick/quick.svg
    echo "quick done after $((SECONDS / 60)) minutes: out/quick/quick.svg"
}

case ${1:-} in
quick) quick ;;
full)
    for p in ${2:-main claims more-claims encodings training hybrid read-time tasks tokens more-tasks}; do part $p; done
    python -m experiments.report
    ;;
*) sed -n '2,11s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac

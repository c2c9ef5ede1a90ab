#!/usr/bin/env bash
# What a GPU makes of this repository, in less than ten minutes: a line of JSON per stage, on the
# screen and in FOLDER/stages.jsonl; what a stage printed is in FOLDER/STAGE.txt.
#
#     bash tools/gpu_check.sh [FOLDER]      # a new one, out/gpu_check
#     NANOGPT=../nanoGPT FOLIO_DATA=../data bash tools/gpu_check.sh
#     DRY=1 bash tools/gpu_check.sh         # the same on a CPU, tiny: does this script work?
#
# NANOGPT: a checkout to compare with. FOLIO_DATA: a folder with tinyshakespeare.txt, which is
# downloaded otherwise. PYTHON: the interpreter. requirements.txt is enough for all but the tests.

ROOT=$(cd "$(dirname "$0")/.." && pwd) FOLDER=${1:-out/gpu_check} PYTHON=${PYTHON:-python}
NANOGPT=${NANOGPT:+$(realpath "$NANOGPT")} FOLIO_DATA=${FOLIO_DATA:+$(realpath "$FOLIO_DATA")}
mkdir -p "$(dirname "$FOLDER")" && mkdir "$FOLDER" && cd "$FOLDER" || exit 2
export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}
DEVICE=cuda COMPILE=True FP16=float16 UPDATES=20 TOKENS=200 SMALL=() COLLECT=() PATIENCE=1
if [[ ${DRY:-} ]]; then
    DEVICE=cpu COMPILE=False FP16=float32 UPDATES=1 TOKENS=4 COLLECT=(--collect-only)
    PATIENCE=9  # such a machine may be busy
    SMALL=(--n_layer=1 --n_embd=48 --block_size=16 --batch_size=2 --max_iters=2)
fi
FAILED=0 SECONDS=0

record() { "$PYTHON" -m tools.gpu_check record "$@" | tee -a stages.jsonl; }
stage() {  # STAGE LIMIT COMMAND: for LIMIT seconds at most, and what the ten minutes have left
    local name=$1 limit=$(($2 * PATIENCE)) start=$SECONDS status=ok
    local left=$((580 * PATIENCE - SECONDS))
    shift 2
    ((left > 5)) || { record "$name" skipped 0 "the ten minutes are over"; return; }
    timeout -k 5 $((left < limit ? left : limit)) "$@" >"$name.txt" 2>&1
    case $? in 0) ;; 124 | 137) status="timed out" FAILED=1 ;; *) status=failed FAILED=1 ;; esac
    record "$name" "$status" $((SECONDS - start)) ""
}
module() { stage "$1" "$2" "$PYTHON" -m "${@:3}"; }
bench() {
    module "$1" 80 tools.bench "${@:2}" "${SMALL[@]}" --device=$DEVICE --json_file="$1.json"
}
decode() { bench "$1" config/gpt2.py --updates=0 --new_tokens=$TOKENS "${@:2}"; }
steps() {
    local options=(--updates=$UPDATES --new_tokens=0 --compile=$COMPILE)
    bench "$1" "${@:2}" "${options[@]}" --gradient_accumulation_steps=1
}
shakespeare() {
    local options=("${@:2}" "${SMALL[@]}" --device=$DEVICE --out_dir="$1")
    stage "$1" 90 "$PYTHON" "$ROOT/train.py" config/shakespeare_char.py "${options[@]}"
}
nanogpt() {
    local options=(--bias=False --real_data=False "${@:2}")
    if [[ $NANOGPT && ! ${DRY:-} ]]; then
        stage "$1" 80 env -C "$NANOGPT" "$PYTHON" bench.py "${options[@]}"
    else
        record "$1" skipped 0 "it needs a GPU, and NANOGPT, a checkout of nanoGPT"
    fi
}

module attention 30 tools.gpu_check attention $DEVICE
if "$PYTHON" -c "import pytest, xdist" 2>tests.txt; then
    TESTS=("$ROOT/tests/test_train.py" "$ROOT/tests/test_generate.py")
    module tests 120 pytest -n 0 -k "gpu or compiled_generation" "${COLLECT[@]}" "${TESTS[@]}"
else
    record tests skipped 0 "it needs requirements-dev.txt"
fi
decode decode_eager
decode decode_compiled --generation_compile=$COMPILE
decode decode_compiled_64 --generation_compile=$COMPILE --num_samples=64
INPUT=(${FOLIO_DATA:+"--input=$FOLIO_DATA/tinyshakespeare.txt"})
stage data 60 "$PYTHON" "$ROOT/prepare_shakespeare.py" "${INPUT[@]}"
shakespeare shakespeare_char_to_1.4697
for N in 12 48; do
    steps gpt2_$N config/gpt2.py --bias=False --batch_size=$N
    nanogpt nanogpt_$N --batch_size=$N
done
MODERN=(--bias=False --rotary --rms_norm --qk_norm --zero_init --activation=relu2 --optimizer=muon)
steps modern config/gpt2.py "${MODERN[@]}"
steps gpt3_125m projects/webtext/gpt3_125m.py
steps gpt3_125m_no_window projects/webtext/gpt3_125m.py --window=0
shakespeare fp16_muon --dtype=$FP16 --max_iters=200
TORCHRUN=(torch.distributed.run --standalone --nproc_per_node=1)
module nccl 60 "${TORCHRUN[@]}" -m tools.gpu_check group $DEVICE
exit $FAILED

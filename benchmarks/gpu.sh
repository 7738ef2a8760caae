#!/usr/bin/env bash
# What is run on a machine with one large GPU, most important first; each part fits a call of ten minutes.
#
#   bash benchmarks/gpu.sh solo packed            # some parts, in this order
#   WHEELS=folder bash benchmarks/gpu.sh all      # comparators' wheels installed first, beside what is there
#
# Results go into benchmarks/results and, where OUT names a folder, a copy into it after every part; what went by on stderr is in gpu.log there.
# Parts and what they take on one H200, estimated: solo 7 min (B3, 1.1B), packed 6 min (B2, 1.1B at 512 and 256),
# evaluation 5 min (B5), study 5 min (B1), solo7 9 min (B3, 7B LoRA and QLoRA), packed7 6 min (B2, 7B at 1k),
# nf4 7 min (B10), rest 8 min (the remaining sizes of B2), full7 5 min (B3, 7B full),
# decode 6 min (B6), mixed 6 min (B7), swaps 2 min (B8), memory 10 min (B9).
set -u
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD/src:${PYTHONPATH:-}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export UNSLOTH_DISABLE_STATISTICS=1 UNSLOTH_COMPILE_LOCATION=/tmp/unsloth_compiled
if [ -n "${WHEELS:-}" ]; then
  python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target /tmp/comparators "$WHEELS"/*.whl
  export PYTHONPATH="$PWD/src:/tmp/comparators:$PYTHONPATH"
fi

bench() { # seconds in all, seconds a contender, script, arguments
  local total=$1 each=$2 script=$3
  shift 3
  timeout $((total + 40)) python3 "benchmarks/$script.py" --device cuda --total-s "$total" --limit-s "$each" "$@" \
    2>>"${OUT:-/tmp}/gpu.log"
  echo "$script $*: exit $?, ${SECONDS} s so far"
  if [ -n "${OUT:-}" ]; then cp benchmarks/results/*-cuda.json "$OUT"/; fi
}

parts=("$@")
[ "${1:-all}" = all ] && parts=(solo packed evaluation study solo7 packed7 nf4 rest full7)
for part in "${parts[@]}"; do
  case $part in
    solo) bench 540 150 b3_solo --cases 1.1B ;;
    packed) bench 540 300 b2_packed --cases "1.1B, 512|1.1B, 256" ;;
    evaluation) bench 540 250 b5_evaluation ;;
    study) bench 540 290 b1_study ;;
    solo7) bench 540 160 b3_solo --cases "7B lora|7B qlora" ;;
    packed7) bench 540 290 b2_packed --cases "7B, 1024" ;;
    nf4) bench 540 350 b10_nf4 ;;
    rest) bench 540 350 b2_packed --cases "1.1B, 1024|1.1B, 4096|7B, 256" ;;
    full7) bench 540 150 b3_solo --cases "7B full" ;;
    decode) bench 540 250 b6_decode ;;
    mixed) bench 540 250 b7_mixed ;;
    swaps) bench 200 180 b8_swaps ;;
    memory) timeout 590 python3 benchmarks/b9_memory.py --budget-s 540 --out "${OUT:-benchmarks/results}/b9-memory.jsonl" ;;
    *) echo "gpu.sh: no such part, got $part; see the head of this file" >&2; exit 2 ;;
  esac
done

#!/usr/bin/env bash
# bash run.sh SECONDS [arguments of benchmarks.claims, as --tier T2, --processes 8 or --device cpu]
# bash run.sh SECONDS times          what one cell takes alone, part by part: benchmarks/claims_/cell_times.py
#
# Adds lines to $OUT/claims.jsonl, with all processes on the GPU, and ends within SECONDS. What is there is gone on with;
# where nothing is, a claims.jsonl beside this file is. Icons and encoded captions are kept in work/.
source "$(dirname "${BASH_SOURCE[0]}")/begin.sh"
LINES_FILE=$OUT/claims.jsonl
[ -f "$LINES_FILE" ] || cp "$KIT/claims.jsonl" "$LINES_FILE" 2>/dev/null || touch "$LINES_FILE"
WORK=$KIT/work
"$PYTHON" -m devtools.gpu_kit.icons "$KIT/icons" "$WORK/icons" || exit 1

# As many processes as cores (nproc takes OMP_NUM_THREADS for their number), each of one thread: more would only wait.
processes=$(env -u OMP_NUM_THREADS nproc)
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 CUDA_MODULE_LOADING=LAZY
if [ "${1:-}" = times ]; then
  timeout -k 5 "$(left_but 0)" "$PYTHON" -m benchmarks.claims_.cell_times --device cuda --work "$WORK" "${@:2}" 2>&1 |
    tee "$OUT/cell-times.txt"
  exit "${PIPESTATUS[0]}"
fi
measure=("$PYTHON" -m benchmarks.claims --device cuda --processes "$processes" --threads 1 --work "$WORK"
         --json "$LINES_FILE" "$@")
say "${measure[*]}"
# Some seconds are for what follows.
timeout -k 5 "$(left_but 16)" "${measure[@]}" >"$OUT/claims.txt" 2>>"$OUT/run.log" &
measuring=$!
while kill -0 $measuring 2>/dev/null; do
  for _ in {1..10}; do kill -0 $measuring 2>/dev/null && sleep 2; done
  gpu=$(nvidia-smi --query-gpu=utilization.gpu,memory.used --format=csv,noheader 2>/dev/null)
  say "$(wc -l <"$LINES_FILE") lines, $(grep -c '^failed: ' "$OUT/run.log") failed, GPU ${gpu:-not told}," \
    "load $(cut -d' ' -f1 /proc/loadavg)"
done
wait $measuring
status=$?
say "ended with $status (124 or 137: stopped at the limit)"
timeout 14 "$PYTHON" -m benchmarks.claims_.so_far "$LINES_FILE" 2>&1 | tee "$OUT/so-far.md"
exit $status

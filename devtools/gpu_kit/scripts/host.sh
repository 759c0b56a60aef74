#!/usr/bin/env bash
# bash run.sh SECONDS [arguments of benchmarks.gpu_host, as --modes dynamic plain, or --layout small --device cpu]
#
# Writes $OUT/gpu-host.json anew after every step, and the servers' logs beside it, and ends within SECONDS. Another run
# with the same OUT writes over it.
source "$(dirname "${BASH_SOURCE[0]}")/begin.sh"
# Folders that ComfyUI lists when it starts.
mkdir -p "$TREE"/comfyui/{custom_nodes,models,input,output,blueprints,comfy_api_nodes}
# It shares its minutes among the modes by itself; some seconds are for a server that does not end.
minutes=$("$PYTHON" -c "print($(left_but 20) / 60)")
timeout -k 5 "$(left_but 6)" "$PYTHON" -m benchmarks.gpu_host --comfyui "$TREE/comfyui" --json "$OUT/gpu-host.json" \
  --minutes "$minutes" "$@" 2>&1 | tee -a "$OUT/run.log"
exit "${PIPESTATUS[0]}"

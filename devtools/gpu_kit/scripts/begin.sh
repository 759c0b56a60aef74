# What run.sh of every kit begins with: it reads SECONDS, unpacks the kit, and leaves tree/checkout as the folder it is in.
#
# OUT     where results are left (by default results/ beside this file)
# PYTHON  that runs the measurement (by default python3)

BEGAN=$(date +%s)
[[ ${1:-} =~ ^[0-9]+$ ]] || { echo "usage: bash run.sh SECONDS [arguments of the measurement]" >&2; exit 2; }
LIMIT=$1
shift
KIT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "${OUT:=$KIT/results}"
OUT=$(cd "$OUT" && pwd)
PYTHON=${PYTHON:-python3}
TREE=$KIT/tree

passed() { echo $(($(date +%s) - BEGAN)); }
# The seconds that are left but for so many; at least one, since to timeout 0 is for ever.
left_but() {
  local seconds=$((LIMIT - $(passed) - $1))
  echo $((seconds > 0 ? seconds : 1))
}
say() { echo "[$(passed) s] $*" | tee -a "$OUT/run.log"; }

export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export PYTHONPATH=$TREE/site COMFYUI_PATH=$TREE/comfyui
say "revision $(cat "$KIT/revision"), at most $LIMIT s"
lacking='import importlib.util as u, sys; print(*(name for name in sys.argv[1:] if u.find_spec(name) is None))'
lacking=$("$PYTHON" -c "$lacking" $(cat "$KIT/needs")) || exit 1
if [ -n "$lacking" ]; then
  say "error: $PYTHON lacks $lacking"
  exit 1
fi
rm -rf "$TREE"
unpacking=()
for part in checkout comfyui site; do
  mkdir -p "$TREE/$part"
  tar -xJf "$KIT/$part.tar.xz" -C "$TREE/$part" &
  unpacking+=($!)
done
for one in "${unpacking[@]}"; do wait "$one" || exit 1; done
cd "$TREE/checkout" || exit 1
"$PYTHON" -m devtools.gpu_kit.weights "$KIT/weights" "$TREE/checkout" || exit 1
say "unpacked"

#!/usr/bin/env bash
# Builds, tests, sanitizes, measures and trains on a machine with an NVIDIA GPU, with or without a network.
#
#   scripts/gpu.sh [--stage NAME,...] [--only NAME] [--out DIR] [--limit SECONDS] [--cpu-rehearsal]
#
# Wants Python with PyTorch, h5py, scikit-learn and pytest, nvcc and a C++ compiler; takes what else is missing from .gpu/,
# which scripts/gpu_pack.sh fills elsewhere, into build/gpu/site: nothing outside this checkout is written but --out.
# Stages, all by default; each has its own time limit (450 s), the build before them 140 s:
#   tests     all tests, those on CUDA first
#   sanitize  compute-sanitizer's four tools over every op (scripts/sanitize_cases.py)
#   peers     builds rivals that have no wheels, for the benchmarks
#   bench     all benchmarks on CUDA -> bench.json
#   step      a training step beside a naive one: clouds a second, FLOP/s, memory, stages, by batch size -> step.json
#   speed     clouds a second in training, by preset, precision and compile -> speed.json
#   train     trains on .gpu/data and probes with a linear SVM -> train.json
# A failed stage does not stop the next; the exit code says whether one failed. DIR (benchmarks/results/gpu) gets a log a
# stage, their JSON, and stages.jsonl, as they come, in files of at most 16 MiB.
# --only takes those files of tests/ and benchmarks/ whose names have NAME in them.
# --cpu-rehearsal walks through the same stages on a CPU with tiny settings, without the sanitizer.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
script=$PWD/scripts/gpu.sh
site=$PWD/build/gpu/site
python=${PYTHON:-python3}

all_stages=tests,sanitize,peers,bench,step,speed,train
stages=$all_stages
limit=450
out=benchmarks/results/gpu
device=${JOINTMAE_GPU_DEVICE:-cuda}
only=${JOINTMAE_GPU_ONLY:-}
inside=""
while [ $# -gt 0 ]; do
  case $1 in
    --stage) stages=$2 && shift 2 ;;
    --out) out=$2 && shift 2 ;;
    --only) only=$2 && shift 2 ;;
    --limit) limit=$2 && shift 2 ;;
    --cpu-rehearsal) device=cpu && shift ;;
    --inside) inside=$2 && shift 2 ;; # one stage, in this process
    *) sed -n '2,21s/^# \?//p' "$script" >&2 && exit 2 ;;
  esac
done
for name in ${stages//,/ }; do
  [[ ,$all_stages, == *,$name,* ]] || { echo "gpu.sh: no stage $name; there are $all_stages" >&2 && exit 2; }
done
mkdir -p "$out" build/gpu || exit
out=$(cd "$out" && pwd)

export JOINTMAE_GPU_DEVICE=$device JOINTMAE_GPU_ONLY=$only PYTHONPATH=$PWD:$site PATH=$site/bin:$PATH PYTHONUNBUFFERED=1
JOINTMAE_COMMIT=$(git describe --always --dirty 2>/dev/null || cat .gpu/commit 2>/dev/null || echo unknown)
export JOINTMAE_COMMIT

pip_install() { # into our own folder, from our own files
  "$python" -m pip install -q --disable-pip-version-check --no-index --no-deps --no-compile --no-build-isolation \
    --target "$site" "$@"
}

architecture() { # 90
  "$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())'
}

missing_wheels() { # those in .gpu/wheels whose package is not here
  "$python" - .gpu/wheels/*.whl <<'PYTHON'
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

for wheel in map(Path, sys.argv[1:]):
    try:
        version(wheel.name.split("-")[0])
    except PackageNotFoundError:
        if wheel.exists():
            print(wheel)
PYTHON
}

build() {
  local wheels cuda=OFF
  mapfile -t wheels < <(missing_wheels)
  [ ${#wheels[@]} -eq 0 ] || pip_install "${wheels[@]}" || return
  if [ "$device" = cuda ]; then
    cuda=ON
    nvidia-smi
    CUDAARCHS=$(architecture)-real
    export CUDAARCHS
  fi
  if "$python" -c "
from jointmae.ops import native
assert native.kernels is not None and (native.cuda is not None or '$device' == 'cpu')" 2>/dev/null; then
    echo "the module of these sources is already built"
  else
    JOINTMAE_CUDA=$cuda "$python" setup.py -q build_ext --inplace
  fi
}

tests() {
  local pytest=("$python" -m pytest -v) files=(tests/test_*"$only"*.py) failed=0 which # tests/simt is for other machines
  "$python" -c "import xdist" 2>/dev/null && pytest+=(-n 8)
  if [ "$device" = cpu ]; then
    "${pytest[@]}" tests/test_group.py -k cpu
    return
  fi
  for which in cuda "not cuda"; do
    "${pytest[@]}" "${files[@]}" -k "$which"
    [[ $? =~ ^[05]$ ]] || failed=1 # 5: no test was chosen
  done
  return $failed
}

sanitize() {
  local tool failed=0
  if [ "$device" = cpu ]; then
    echo "skipped: compute-sanitizer needs a GPU; the cases alone:"
    "$python" scripts/sanitize_cases.py --device cpu
    return
  fi
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1 # else a read past a tensor's end is a read of the cache's own memory
  for tool in memcheck racecheck initcheck synccheck; do
    timeout $((limit - 30)) compute-sanitizer --tool $tool "$python" scripts/sanitize_cases.py \
      >"build/gpu/$tool.log" 2>&1 &
    echo $! >"build/gpu/$tool.pid"
  done
  for tool in memcheck racecheck initcheck synccheck; do
    wait "$(cat "build/gpu/$tool.pid")"
    local code=$? ours
    cat "build/gpu/$tool.log"
    # Reports say "at KERNEL(...)": what PyTorch's own kernels are accused of is not for us to judge. Two more lines of
    # every report have an "at" that accuses nobody.
    ours=$(grep -E '^=========.* at ' "build/gpu/$tool.log" | grep -vE 'host backtrace|nearest allocation' |
      grep -cvE 'at::|cub::|at_cuda_detail|cublas|cutlass|cudnn|gemm|gemv')
    echo "{\"tool\": \"$tool\", \"exit_code\": $code, \"reports_of_our_kernels\": $ours}" | tee -a "$out/sanitize.jsonl"
    [ $code -eq 0 ] && [ "$ours" -eq 0 ] || failed=1
  done
  return $failed
}

peers() {
  local source failed=0 jobs=() names=()
  if [ "$device" = cuda ]; then
    TORCH_CUDA_ARCH_LIST=$(architecture | sed 's/.$/.&/')
    export TORCH_CUDA_ARCH_LIST FORCE_CUDA=1
  fi
  MAX_JOBS=$(nproc)
  export MAX_JOBS
  for source in .gpu/sources/*; do
    [ -e "$source" ] || continue
    [ "$device" = cuda ] || { echo "rehearsal: not built: $source" && continue; }
    pip_install "./$source" >"build/gpu/$(basename "$source").log" 2>&1 &
    jobs+=($!) names+=("$(basename "$source")")
  done
  for i in "${!jobs[@]}"; do
    wait "${jobs[$i]}" && echo "built ${names[$i]}" && continue
    failed=1
    echo "not built: ${names[$i]}"
    tail -n 30 "build/gpu/${names[$i]}.log"
  done
  return $failed
}

bench() { # a process a file: a rival that breaks the GPU's context takes no other op with it
  local file failed=0 options=(-k cuda)
  [ "$device" = cuda ] || options=(--quick -k "cpu and (64 or 32-2048-256-32-96)")
  for file in benchmarks/bench_*"$only"*.py; do
    "$python" -m pytest -q "$file" "${options[@]}" --results "$out/bench.json"
    [[ $? =~ ^[05]$ ]] || failed=1 # 5: no benchmark was chosen
  done
  return $failed
}

train_step() { # train_step OPTIONS...
  "$python" -m benchmarks.bench_train_step --device "$device" --json "$out/step.json" "$@"
}

step() { # what matters most comes first
  local failed=0
  if [ "$device" = cpu ]; then
    train_step --preset tiny --batch-size 8 --seconds 1
    return
  fi
  train_step --preset paper --precision bf16 --mode compiled eager naive --seconds 5 || failed=1
  train_step --preset paper --precision bf16 --mode compiled --batch-size 256 512 1024 --no-stages --seconds 5 \
    --budget $((limit / 3)) || failed=1
  train_step --preset paper small tiny --precision fp32 bf16 --mode eager naive --seconds 3 --budget $((limit / 6)) ||
    failed=1
  return $failed
}

train_runs() { # train_runs WHAT OPTIONS...
  local data=(.gpu/data/*.h5) work=build/gpu/$1
  [ -e "${data[0]}" ] || { echo "no .gpu/data/*.h5: run scripts/gpu_pack.sh first" && return 1; }
  rm -rf "$work"
  "$python" scripts/train_runs.py "$@" --data "${data[@]}" --work "$work" --seconds $((limit - 30)) --device "$device"
}

speed() {
  local options=()
  [ "$device" = cuda ] || options=(--steps 40 --presets tiny)
  train_runs speed --out "$out/speed.json" "${options[@]}"
}

train() {
  local options=(--preset paper)
  [ "$device" = cuda ] || options=(--preset tiny --steps 30)
  train_runs quality --out "$out/train.json" "${options[@]}"
}

if [ -n "$inside" ]; then
  "$inside"
  exit
fi

failures=()
run_stage() { # run_stage NAME SECONDS: in a process of its own; its failure is noted
  local begin=$SECONDS code minutes
  printf '\n==== %s\n' "$1"
  timeout --kill-after=10 "$2" bash "$script" --inside "$1" --out "$out" --limit "$limit" 2>&1 | tee "$out/$1.log"
  code=${PIPESTATUS[0]}
  minutes=$(awk "BEGIN { printf \"%.1f\", ($SECONDS - $begin) / 60 }")
  find "$out" -maxdepth 1 -type f -size +16M -exec sh -c 'split -b 16M -d "$1" "$1." && rm "$1"' _ {} \;
  echo "{\"stage\": \"$1\", \"exit_code\": $code, \"minutes\": $minutes, \"commit\": \"$JOINTMAE_COMMIT\"}" >>"$out/stages.jsonl"
  report+=$(printf '%6s min  %-9s %s' "$minutes" "$1" "$([ "$code" -eq 0 ] || echo "FAILED, exit code $code")")$'\n'
  [ "$code" -eq 0 ] || failures+=("$1")
}

report=""
run_stage build 140
for name in ${stages//,/ }; do run_stage "$name" "$limit"; done
printf '\n%s' "$report"
[ ${#failures[@]} -eq 0 ] || { echo "failed: ${failures[*]}" && exit 1; }

#!/usr/bin/env bash
# Fills .gpu/ with what gpu.sh needs on a Linux machine without a network: wheels, sources of rivals that must be built
# there, and a share of real data. Run it where there is a network, in an environment with PyTorch and h5py.
#
#   scripts/gpu_pack.sh [--python 3.12] [--with PACKAGE]... [--source FOLDER]... DATA...
#
# DATA are .h5 files, or folders of them: so many evenly spaced clouds of each split as the 50 MiB in all leave room for.
# What the machine has already (torch, NumPy, h5py, scikit-learn, pytest) is not packed; --with adds what else it lacks,
# such as cmake, matplotlib, pillow, scipy. --source adds a rival's checkout: pytorch3d, pointnet2_ops_lib.
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
folder=$repository/.gpu
limit=$((50 << 20))
version=3.12

# Nothing of these is heavy, and gpu.sh installs only what is missing.
wheels=(pybind11 ninja tyro typeguard docstring-parser rich markdown-it-py mdurl pygments safetensors pytest-timeout
  hypothesis sortedcontainers torchmetrics lightning-utilities torch-fps torch-quickfps-cu130)
sources=(torch-cluster chamferdist)
checkouts=()
data=()
while [ $# -gt 0 ]; do
  case $1 in
    --python) version=$2 && shift 2 ;;
    --with) wheels+=("$2") && shift 2 ;;
    --source) checkouts+=("$2") && shift 2 ;;
    -*) echo "gpu_pack: unknown option $1" >&2 && exit 2 ;;
    *) data+=("$1") && shift ;;
  esac
done
[ ${#data[@]} -gt 0 ] || { sed -n '2,11s/^# \?//p' "$0" >&2 && exit 2; }

rm -rf "$folder"
mkdir -p "$folder/wheels" "$folder/sources" "$folder/data"
git -C "$repository" describe --always --dirty >"$folder/commit"

platforms=()
for tag in _2_39 _2_38 _2_35 _2_34 _2_31 _2_28 _2_27 _2_24 _2_17 2014 _2_12 2010 _2_5 1; do # pip takes them literally
  platforms+=(--platform "manylinux${tag}_x86_64")
done
unset PIP_CONSTRAINT # it names a version for this machine
for package in "${wheels[@]}"; do
  pip download -q --no-deps --only-binary=:all: --python-version "$version" --implementation cp "${platforms[@]}" \
    -d "$folder/wheels" "$package" || echo "gpu_pack: no wheel of $package" >&2
done
for package in "${sources[@]}"; do
  pip download -q --no-deps --no-binary=:all: --no-build-isolation -d "$folder/sources" "$package" ||
    echo "gpu_pack: no source of $package" >&2
done
for checkout in "${checkouts[@]}"; do
  copy=$folder/sources/$(basename "$checkout")
  cp -r "$checkout" "$copy"
  rm -rf "$copy/.git" "$copy/docs" "$copy/tests" "$copy/projects" "$copy/website"
  sed -i '/TORCH_CUDA_ARCH_LIST/d' "$copy/setup.py" # a frozen list that nvcc no longer knows
done

used=$(du -sb "$folder" | cut -f1)
python "$repository/scripts/pack_data.py" --max-bytes $((limit - used)) "$folder/data" "${data[@]}"
used=$(du -sb "$folder" | cut -f1)
du -h --max-depth=1 "$folder"
[ "$used" -le $limit ] || { echo "gpu_pack: $folder has $used bytes, over the limit of $limit" >&2 && exit 1; }

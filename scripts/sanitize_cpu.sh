#!/usr/bin/env bash
# The tests of the ops on CPU kernels that were built with AddressSanitizer and UndefinedBehaviorSanitizer, at every
# instruction set that this processor has, or with --ends at the lowest and the best one. Builds in place, so run it in
# a clone of its own; needs g++ and the packages setuptools, cmake, ninja, pybind11, pytest and pytest-xdist.
set -euo pipefail
cd "$(dirname "$0")/.."
case "$*" in
  "" | --ends) ;;
  *)
    echo "usage: scripts/sanitize_cpu.sh [--ends]; got: $*" >&2
    exit 2
    ;;
esac

flags="-fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all"
CXXFLAGS="$flags -g1" LDFLAGS="$flags" JOINTMAE_CUDA=OFF python setup.py -q build_ext --inplace

# Python itself knows nothing of the sanitizers: they come before it. Fresh memory is full of NaN, so that a result that
# depends on it is wrong.
for library in asan ubsan stdc++; do preload+="$(g++ -print-file-name=lib$library.so) "; done
export LD_PRELOAD=$preload ASAN_OPTIONS=detect_leaks=0:malloc_fill_byte=255:max_malloc_fill_size=1000000000

# A read past the end of a tensor must be seen, or all that follows means nothing.
if python -c "
import torch, jointmae_native
values = torch.ones(8)
jointmae_native.all_finite(values.data_ptr(), 9, False, 1)" 2> build/sanitizer.log ||
  ! grep -q heap-buffer-overflow build/sanitizer.log; then
  cat build/sanitizer.log
  echo "the sanitizers are not at work" >&2
  exit 1
fi

ops=(all_finite farthest_point_sample knn group knn_interpolate chamfer_distance project_points local_aligned_attention)
tests=("${ops[@]/#/tests/test_}")
step=$([ "${1:-}" = --ends ] && echo "max(len(levels) - 1, 1)" || echo 1)
for isa in $(python -c "from tests.op_cases import isa_levels; levels = isa_levels(); print(*levels[::$step])"); do
  echo "at $isa"
  JOINTMAE_ISA=$isa python -m pytest -q -n 2 "${tests[@]/%/.py}"
done

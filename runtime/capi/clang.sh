#!/usr/bin/env bash
# Builds libdithead with its test programs, examples and fuzz targets by clang, with sanitizers and
# with warnings as errors; fetches clang where the system has none. Run by `make fuzz-capi`.
#
# usage: clang.sh FOLDER [-DNAME=VALUE...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
folder=$1
shift
if ! command -v clang++ >/dev/null; then
    packages=$PWD/build/capi-clang-packages
    runtime/capi/fetch.sh "$packages" clang
    compilers=("$packages"/usr/lib/llvm-*/bin)
    export PATH=${compilers[0]}:$PATH
    export LD_LIBRARY_PATH=$packages/usr/lib/$(uname -m)-linux-gnu:${compilers[0]%bin}lib
fi
export CC=clang CXX=clang++
runtime/capi/build.sh "$folder" -DDITHEAD_FUZZ=ON -DDITHEAD_TESTS=ON -DDITHEAD_EXAMPLES=ON \
    -DDITHEAD_SANITIZE=address,undefined -DCMAKE_COMPILE_WARNING_AS_ERROR=ON "$@"

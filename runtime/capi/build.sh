#!/usr/bin/env bash
# Builds libdithead, and fetches what the system lacks for it. Run by `make capi`.
#
# usage: build.sh FOLDER [-DNAME=VALUE...]
#
# Of its own accord it takes the ONNX Runtime that the Python environment has, or would have, so that
# frames equal Python's to the bit. -DONNXRUNTIME_ROOT=..., or -DONNXRUNTIME_LIBRARY=... and
# -DONNXRUNTIME_INCLUDE_DIR=..., take another one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
folder=$1
shift
packages=$PWD/build/capi-packages
options=(-DCMAKE_PREFIX_PATH="$packages/usr")

for tool in cmake c++; do
    command -v "$tool" >/dev/null && continue
    echo "building libdithead needs $tool (on Debian: apt-get install cmake g++)" >&2
    exit 1
done

# The library of the wheel that is installed in a folder; nothing if there is none.
wheel_library() {
    [[ -d $1 ]] || return 0
    find -L "$1" -path '*/onnxruntime/capi/libonnxruntime.so.*' | sort | tail -n 1
}

if [[ $* != *-DONNXRUNTIME_* ]]; then
    library=$(wheel_library "$PWD/.venv/lib")
    if [[ -z $library ]]; then library=$(wheel_library "$packages/python"); fi
    if [[ -z $library ]]; then
        .venv/bin/pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt \
            --target "$packages/python" onnxruntime
        library=$(wheel_library "$packages/python")
    fi
    options+=(-DONNXRUNTIME_LIBRARY="$library"
        -DONNXRUNTIME_INCLUDE_DIR="$packages/usr/include/onnxruntime")
    runtime/capi/fetch.sh "$packages" onnxruntime
fi
runtime/capi/fetch.sh "$packages" nlohmann openssl

if [[ $* == *-DDITHEAD_WITH_SWSCALE=ON* ]]; then
    runtime/capi/fetch.sh "$packages" swscale
    fetched=("$packages"/usr/lib/*/pkgconfig)
    if [[ -e ${fetched[0]}/libswscale.pc ]]; then
        export PKG_CONFIG_PATH=${fetched[0]} PKG_CONFIG_SYSROOT_DIR=$packages
        # An old-style path, which is searched for what libavutil itself needs, too.
        linked=-Wl,--disable-new-dtags,-rpath,${fetched[0]%/pkgconfig}
        options+=("-DCMAKE_SHARED_LINKER_FLAGS=$linked" "-DCMAKE_EXE_LINKER_FLAGS=$linked")
    fi
fi

if command -v ninja >/dev/null && [[ ! -e $folder/Makefile ]]; then options+=(-G Ninja); fi
cmake -S runtime/capi -B "$folder" "${options[@]}" "$@"
cmake --build "$folder" --parallel "${JOBS:-2}"

#!/usr/bin/env bash
# Measures what only a GPU can show, in about ten minutes on one, and leaves all of it in a folder:
#
#   bench/gpu_session.sh results
#
# The tests for a GPU, the Triton kernels tuned and timed, a bundle with engines built, run and
# compared there, and streams of `tiny` and of `paper` (random weights: their speed is the same), with
# few steps and with the paper's 250. A part that fails is noted, and the others go on. Run it in the
# sources, with `dithead[dev,triton]` and onnxruntime-gpu installed.
#
# DRY_RUN=1 needs no GPU: the kernels are compared in Triton's interpreter, timed and captured on a
# device that is emulated in the process, and the streams run on the CPU, all in the shortest form.
set -uo pipefail

out=${1:?the folder to write}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
dry=${DRY_RUN:-}
device=${DEVICE:-${dry:+cpu}}
device=${device:-cuda}
started=$SECONDS
failed=()

# Runs a part with a limit in seconds, and keeps what it prints.
part() {
    local name=$1 limit=$2
    shift 2
    printf '== %s (%s s)\n' "$name" "$((SECONDS - started))"
    timeout "$limit" "$@" >"$out/$name.log" 2>&1 </dev/null && return
    failed+=("$name")
    printf '   failed: %s\n' "$(tail -n 1 "$out/$name.log")"
}

export DITHEAD_FOOTAGE=${DITHEAD_FOOTAGE:-none}
part doctor 60 dithead doctor
if [[ -n $dry ]]; then
    part counts 120 dithead bench counts --presets tiny
    TRITON_INTERPRET=1 part kernels_tuned 240 dithead bench kernels --dry-run --tune
    TRITON_INTERPRET=1 part kernels 120 dithead bench kernels --dry-run -o "$out/kernels.json"
    part kernels_emulated 240 pytest -q tests/test_bench_kernels.py tests/test_emulated_cuda.py \
        -k "emulated_device or kernels_are_captured"
    part stream_tiny 240 dithead bench stages --backend torch --frames 4 --warm-up 1 --threads 1 \
        -o "$out/stream_tiny.json"
    part stream_random 240 dithead bench stages --checkpoint random:tiny --frames 2 --warm-up 1 \
        --threads 1 -o "$out/stream_random.json"
else
    part counts 60 dithead bench counts
    part tests_kernels 120 pytest -q tests/test_kernels_[!c]*.py
    part tests_cuda 120 pytest -q -m gpu
    part kernels_tuned 240 dithead bench kernels --device "$device" --tune
    part kernels 200 dithead bench kernels --device "$device" -o "$out/kernels.json"
    part export 180 dithead export --fp16 --targets gpu --largest-rectangle 512 -o "$out/bundle"
    part verify 60 dithead export --verify "$out/bundle" --json
    for backend in torch onnxruntime tensorrt-rtx; do
        bundle=(--bundle "$out/bundle")
        [[ $backend == torch ]] && bundle=()
        part "stream_tiny_$backend" 90 dithead bench stream --device "$device" --backend "$backend" \
            "${bundle[@]}" --threads 1 --paper-frames 0 -o "$out/stream_tiny_$backend.json"
    done
    DITHEAD_KERNELS=reference part stream_tiny_references 60 dithead bench stream --device "$device" \
        --backend torch --threads 1 --paper-frames 0 -o "$out/stream_tiny_references.json"
    # Few steps, and the paper's 250.
    part stream_paper 150 dithead bench stream --device "$device" --backend torch \
        --checkpoint random:paper --steps 1,4 --frames 20 --warm-up 4 --threads 1 --paper-frames 3 \
        -o "$out/stream_paper.json"
    rm -rf "$out/bundle"
fi

printf '== done in %s s: %s\n' "$((SECONDS - started))" "$out"
if ((${#failed[@]})); then
    printf 'failed: %s\n' "${failed[*]}"
    exit 1
fi

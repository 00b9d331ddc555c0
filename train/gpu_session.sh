#!/usr/bin/env bash
# Trains everything that ships, in about ten minutes on one large GPU with 16 cores:
#
#   dithead-train archive --data data --out footage.tar     # beforehand: the prepared footage, at most 60 MB
#   train/gpu_session.sh footage.tar out
#
# It starts from the packaged checkpoint, and writes out/tiny.safetensors with a log of every stage.
# SCALE=0.01 makes every stage a hundredth as long, DEVICE=cpu needs no GPU: together, a dry run.
# WORKERS is the number of processes that make people from stills, STILLS how many people, BATCH the
# samples in a step of stage 2.
set -euo pipefail

archive=${1:?the archive made by dithead-train archive}
out=${2:?the folder to write}
scale=${SCALE:-1}
device=${DEVICE:-cuda}
workers=${WORKERS:-12}
stills=${STILLS:-260}
start=${START:-$(python -c 'from dithead.checkpoint import asset_path; print(asset_path("tiny"))')}
started=$SECONDS

say() { printf '== %s (%s s)\n' "$*" "$((SECONDS - started))"; }
scaled() { python -c "print(max(0.01, $1 * $scale))"; }
stage() { local minutes; minutes=$(scaled "$1"); shift; dithead-train "$@" --minutes "$minutes"; }

mkdir -p "$out"
say "restore the footage"
dithead-train restore "$archive" --out "$out/data"

say "make people from stills, beside stage 1"
dithead-train identities --data "$out/data" --stills "$stills" --vigour 1 2 --workers "$workers" \
    --out "$out/people" >"$out/identities.log" 2>&1 &
making=$!
trap 'kill "$making" 2>/dev/null || true' EXIT

say "stage 1: the two autoencoders"
stage 1.8 vqgan face --data "$out/data" --start "$start" --device "$device" --out "$out" \
    --batch 64 --learning-rate 8e-4
stage 0.7 vqgan masked --data "$out/data" --start "$start" --device "$device" --out "$out" \
    --batch 64 --learning-rate 8e-4

say "wait for the people"
wait "$making" || { cat "$out/identities.log"; exit 1; }
trap - EXIT
data=("$out/data" "$out/people")
face=$out/vqgan_face.safetensors masked=$out/vqgan_masked.safetensors

say "the shape head"
stage 0.7 shape --data "${data[@]}" --face "$face" --start "$start" --out "$out" --threads "$workers"

say "latents"
dithead-train latents --data "${data[@]}" --face "$face" --masked "$masked" --out "$out/latents" \
    --main-plain-share 0.35 --other-looks 4 --made-looks 0 --device "$device" --workers "$workers"

say "stage 2: the denoiser"
stage 3.5 dit --latents "$out/latents" --start "$start" --shape "$out/shape_head.safetensors" \
    --device "$device" --made-share 0.55 --generated-share 0.1 --batch "${BATCH:-256}" --learning-rate 8e-4 \
    --out "$out"

say "one checkpoint"
dithead-train pack --face "$face" --masked "$masked" --dit "$out/dit.safetensors" \
    --shape "$out/shape_head.safetensors" --out "$out/tiny.safetensors"
say "done: $out/tiny.safetensors"

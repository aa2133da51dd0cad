#!/bin/sh
# What only a GPU can show: every recipe against the CPU, the kernels' tests, then speed and memory of two model shapes
# with random weights. One command, no network, at most nine minutes; a table of all figures comes last.
#
#   make gpu-wheels                              where there is a network: what the machine lacks, into build/gpu/wheels
#   sh benchmarks/gpu.sh [FOLDER]                on the machine; figures and logs go to FOLDER, by default build/gpu/results
#   sh benchmarks/gpu.sh FOLDER --out OTHER      copies figures and packed logs to OTHER after each step
#   sh benchmarks/gpu.sh FOLDER --only NAME …    some of the steps
#   sh benchmarks/gpu.sh --dry-run               the steps and their commands; needs no GPU
#   sh benchmarks/gpu.sh FOLDER --rehearse       acts them out on a CPU with a tiny model
#
# Nine minutes may be too few: with the same FOLDER a later run takes up what is missing or failed.
cd "$(dirname "$0")/.." || exit 2
PYTHON=${PYTHON:-python3}
wheels=${GPU_WHEELS:-build/gpu/wheels}
if [ -d "$wheels" ]; then
    packages=${GPU_PACKAGES:-/tmp/kvcli-gpu-packages}
    "$PYTHON" -m pip install --quiet --no-index --no-deps --upgrade --target "$packages" "$wheels"/*.whl || exit 2
    PYTHONPATH=$packages${PYTHONPATH:+:$PYTHONPATH}
fi
PYTHONPATH=$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
exec "$PYTHON" -m benchmarks.gpu "$@"

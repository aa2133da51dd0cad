#!/bin/sh
# Everything that only a GPU can say: kernels on the device, then the speed and the memory of two model shapes with
# random weights. One command, no network, at most nine minutes; a table of all figures comes last.
#
#   sh tests/gpu/suite.sh [FOLDER]      where JSON and logs go; by default a new temporary one
#   sh tests/gpu/suite.sh --dry-run     the steps, and what the plan says of their memory; needs no GPU
#
# Nine minutes are too few for all steps on most GPUs: with the same FOLDER it goes on with what is missing or failed.
# Changed code wants a new FOLDER.
# The shapes allow 1,310,720 positions, ten times their models', so that `full` can be compared at 128K and 1M be read.
cd "$(dirname "$0")/../.." || exit 2
exec "${PYTHON:-python}" -m tests.gpu.suite "$@"

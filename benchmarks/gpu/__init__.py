"""What only a GPU can show, in steps that fit nine minutes: ``sh benchmarks/gpu.sh``."""

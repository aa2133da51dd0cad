"""KV storages: how surviving units are stored and attended after prefill, one per file."""

"""kvcli's kernels: one package per operation, each with a float32 reference and its fast backends.

All operations share these layouts. ``H`` query heads, ``H_kv`` KV heads, ``G = H / H_kv`` the query group, ``D`` the
head dimension; query head ``h`` reads KV head ``h // G``. There is no batch dimension. An attention term is the pair
``(o [H, m, D], lse [H, m])``: the output over some keys and the log-sum-exp (natural log, float32) of their scaled
logits. Terms over disjoint keys merge with :func:`kvcli_kernels.merge.merge`.
"""

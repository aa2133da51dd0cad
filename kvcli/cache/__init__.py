"""KV caches: ``PrefillCache`` during prefill, the frozen ``Context``, and ``DecodeCache`` for questions and answers."""

"""How fast this machine reads and answers, beside what its arithmetic and its memory allow: ``kvcli bench``."""

"""How surviving units are stored and attended after the reading: one policy per file."""

"""``kvcli chat``: setup, input line, commands, and answers on the terminal."""

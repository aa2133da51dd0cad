"""``kvcli chat``: the ground it stands on, what is typed, what is shown, and the commands."""

"""Other people's programs beside ours: the same model, the same token ids, as many kept units. Not run in CI."""

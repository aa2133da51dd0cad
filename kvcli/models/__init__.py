"""Everything that knows Hugging Face: sources of models, loading, attention, rotary embeddings."""

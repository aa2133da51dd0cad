"""The resident engine: one loaded model that answers over HTTP, in the form of the OpenAI interface."""

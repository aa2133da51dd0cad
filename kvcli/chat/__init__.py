"""Conversations without a user interface: turns after a document, their transcript, and its export."""

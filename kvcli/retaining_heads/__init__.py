"""Locret's retaining heads: small trained networks that score each token's importance when it is read."""

"""Locret's retaining heads: small trained networks that say, as a token is read, how much it will matter."""

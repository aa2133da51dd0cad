"""Common parts of storages that keep units in host memory and fetch a few blocks per step.

A *store* holds blocks of keys and values, an *index* on the device selects blocks for a query, and a *reader* stages
them. A storage is a choice of store and index.
"""

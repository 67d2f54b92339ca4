"""The stored transfer set: shards, their manifest, and rows that are read on access.

Imports: common. Begin with `shards`.
"""

"""The stored transfer set: shards, their manifest, and rows that are read when they are indexed.

Imports: common. Begin with `shards`.
"""

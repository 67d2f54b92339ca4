"""Synthesis of transfer images from a teacher alone.

Imports: common, models, priors, statistics, transfer_set. Begin with `base` (what a method offers) and `methods`, the
one table of methods; one file per method. `descent` moves images by gradient steps, `shards` makes one file of a set.
"""

"""Synthesis of transfer images from a teacher alone.

Imports: common, models, priors, statistics, transfer_set. Begin with `base` (the interface of a method) and `methods`
(the only table of methods); each method has its own file. `descent` changes images by gradient steps, `shards` makes
one file of a set.
"""

"""How good a student is, on labelled images or, as a proxy, on synthetic ones.

Imports: common, models, data, priors. Begin with `comparison`; a new figure goes into `metrics`.
"""

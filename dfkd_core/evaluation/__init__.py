"""The quality of a student, measured on labelled images or, as a proxy, on synthetic ones.

Imports: common, models, data, priors. Start with `comparison`; a new figure belongs in `metrics`.
"""

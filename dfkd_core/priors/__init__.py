"""Image priors: where synthesized images start from, and the parameters that refinement optimises.

Imports: common. Begin with `base` (what a prior offers) and `table`, the one table of priors; one file per prior.
"""

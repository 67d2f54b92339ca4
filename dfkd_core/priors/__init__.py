"""Image priors: the starting points of synthesized images, and the parameters that refinement optimises.

Imports: common. Start with `base` (the interface of a prior) and `table`, the one table of priors; one file per prior.
"""

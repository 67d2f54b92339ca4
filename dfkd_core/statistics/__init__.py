"""The distribution of the features of the teacher's modelled layer, estimated without its training data.

Imports: common, models, priors. Begin with `estimation`, which holds the table of sources, one file each.
"""

"""The distribution of the features of the teacher's modelled layer, estimated without its training data.

Imports: common, models, priors. Begin with `estimation`: it holds the one table of sources, one file each.
"""

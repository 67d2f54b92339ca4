"""Labelled images, for training a teacher and for evaluation only.

Imports: common. Begin with `datasets`; one file per kind of source.
"""

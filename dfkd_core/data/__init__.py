"""Labelled images, only for training a teacher and for evaluation.

Imports: common. Start with `datasets`; one file per kind of source.
"""

"""A student in the forms that other runtimes load, each compared with the student.

Imports: common, models, data, priors, evaluation. Begin with `run`; how a form is written and read is in `forms`.
"""

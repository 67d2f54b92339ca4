"""A student in the forms that other runtimes load, each compared with the student.

Imports: common, models, data, priors, evaluation. Start with `run`; `forms` writes and reads each form.
"""

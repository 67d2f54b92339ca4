"""When a stored result may be used again: digests of code and files, and the folders that hold them.

Imports: dfkd_core. Begin with `code` (what a stage's result depends on), then `workspace`.
"""

"""params.yaml as a typed tree: its sections, parsing, changes from the command line, and the file's text.

Imports: dfkd_core, dfkd_tasks. Begin with `params`.
"""

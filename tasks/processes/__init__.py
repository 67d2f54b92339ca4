"""The processes of a command: they end with it, and the reason of an end from outside.

Imports: dfkd_core, dfkd_tasks.caching (the digest of the code). Begin with `lifeline`.
"""

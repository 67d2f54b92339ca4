"""The records of a run: histories, tables, pictures, seconds and progress. Nothing here changes a result.

Imports: dfkd_core, dfkd_tasks.caching (paths).
"""

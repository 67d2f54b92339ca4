"""What a run leaves to read: histories, tables, pictures, seconds and progress. Nothing here changes a result.

Imports: dfkd_core, tasks.caching (paths).
"""

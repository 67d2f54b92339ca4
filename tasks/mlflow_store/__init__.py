"""MLflow: the log of a run, the registry with its aliases, and teachers that are stored in it.

Imports: dfkd_core, dfkd_tasks.caching. Begin with `publishing`.
"""

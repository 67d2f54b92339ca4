"""MLflow: what a run logs, the registry with its aliases, and teachers that are read from it.

Imports: dfkd_core, tasks.caching. Begin with `publishing`.
"""

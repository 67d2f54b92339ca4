"""One thin Prefect task per piece of work: load by path, call one function of `dfkd_core`, write, return a reference.

Imports: dfkd_core, dfkd_tasks.caching, dfkd_tasks.records. The imports of these modules decide a stage's cache key.
"""

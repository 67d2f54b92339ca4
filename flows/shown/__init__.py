"""What Prefect shows of a run: its name and tags, its place below the run that started it, and its log.

Imports: dfkd_flows.settings, dfkd_flows.session, dfkd_tasks. Begin with `names`.
"""

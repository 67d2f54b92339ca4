"""Commands that change nothing in the pipeline: `dfkd export`, `dfkd inspect` and `dfkd layers`.

Imports: dfkd_flows.settings, dfkd_flows.session, dfkd_tasks.
"""

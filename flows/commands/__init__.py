"""Commands that change nothing in the pipeline: `dfkd export`, `dfkd inspect`, `dfkd layers` and `dfkd share`.

Imports: dfkd_flows.settings, dfkd_flows.session, dfkd_tasks.
"""

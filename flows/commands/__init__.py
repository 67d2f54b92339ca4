"""Commands that change nothing in the pipeline, such as `dfkd export`, `dfkd calibrate` and `dfkd inspect`.

Imports: dfkd_flows.settings, dfkd_flows.session, dfkd_tasks.
"""

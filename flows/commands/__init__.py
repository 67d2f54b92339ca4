"""Commands that change nothing in the pipeline: `dfkd export`, `dfkd inspect` and `dfkd layers`.

Imports: flows.settings, flows.session, tasks.
"""

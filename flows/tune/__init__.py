"""`dfkd tune`: a search for better settings without real data.

Imports: dfkd_flows.stages, dfkd_flows.settings, dfkd_flows.session, dfkd_tasks. Begin with `command`.
"""

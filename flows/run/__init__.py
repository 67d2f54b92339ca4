"""`dfkd run`: changed stages, the order of the work, publishing and the table of results.

Imports: dfkd_flows.registry, dfkd_flows.stages, dfkd_flows.settings, dfkd_flows.session,
dfkd_tasks. Begin with `command`.
"""

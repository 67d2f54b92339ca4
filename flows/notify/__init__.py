"""Reports on the end of a run, to a command and to an address that the user has set and allowed on this machine.

Imports: dfkd_flows.settings, dfkd_flows.session, dfkd_tasks. Begin with `report`.
"""

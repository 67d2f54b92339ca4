"""Promotion of registered students: the rules, the figures that they need, and the commands.

Imports: dfkd_core, dfkd_tasks, dfkd_flows.settings, dfkd_flows.session, dfkd_flows.stages. Begin with `gate`.
"""

"""The processes around a flow: environment, Prefect's server, their common end, and the terminal.

Imports: dfkd_flows.settings (to prepare a project only), dfkd_tasks. Begin with `environment`.
"""

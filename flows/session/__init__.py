"""The processes around a flow: environment, Prefect's server, their common end, and the terminal.

Imports: flows.settings (to prepare a project only), tasks. Begin with `environment`.
"""

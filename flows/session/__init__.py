"""The processes around a flow: environment, Prefect's server, what ends with what, and the terminal.

Imports: flows.settings (to prepare a project only), tasks. Begin with `environment`.
"""

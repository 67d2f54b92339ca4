"""`dfkd deploy`: the work pool and the deployments of a project on a Prefect server.

Imports: dfkd_flows.pipeline, dfkd_flows.registry, dfkd_flows.session, dfkd_flows.settings, dfkd_tasks. Begin with
`plan`, which lists the deployments; `forms` has their parameters.
"""

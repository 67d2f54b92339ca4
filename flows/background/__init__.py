"""`dfkd up` and `dfkd down`: Prefect's server, a worker and MLflow's page in the background, for one project.

Imports: dfkd_flows.session, dfkd_tasks. Begin with `command`; `kinds` has one entry per service.
"""

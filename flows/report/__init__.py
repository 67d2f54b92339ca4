"""`dfkd report`, and the page at the end of a run: facts of a project and of MLflow, collected for the page.

Imports: dfkd_flows.run, dfkd_flows.registry, dfkd_flows.doctor, dfkd_flows.settings, dfkd_tasks. Begin with `making`,
then `collecting`.
"""

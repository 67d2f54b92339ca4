"""One Prefect flow per stage of dvc.yaml, and the command that runs one.

Imports: dfkd_flows.settings, dfkd_flows.session, dfkd_tasks. Begin with `command`.
"""

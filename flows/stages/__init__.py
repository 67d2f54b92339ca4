"""One Prefect flow per stage of dvc.yaml, and the command that runs one.

Imports: flows.settings, flows.session, tasks. Begin with `command`.
"""

"""The page of a run, `report.html`: its charts, its pictures and its text, from facts that others have collected.

Imports: dfkd_core, dfkd_tasks.records. Begin with `facts`, then `page`. Nothing here reads a project.
"""

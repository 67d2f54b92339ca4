"""`dfkd run`: changed stages, the order of the work, publishing, promotion and the table of results.

Imports: flows.stages, flows.settings, flows.session, tasks. Begin with `command`.
"""

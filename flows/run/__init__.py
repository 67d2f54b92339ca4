"""`dfkd run`: what has changed, the whole run, publishing, the promotion gate and the table of results.

Imports: flows.stages, flows.settings, flows.session, tasks. Begin with `command`.
"""

"""`dfkd tune`: a search for better settings without real data.

Imports: flows.stages, flows.settings, flows.session, tasks. Begin with `command`.
"""

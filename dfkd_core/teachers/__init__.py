"""Where a teacher comes from: training on labelled images, or a checkpoint, a program, a package or a registry.

Imports: common, models, data, training. Begin with `loading`; `preflight` holds the checks that every teacher passes.
"""

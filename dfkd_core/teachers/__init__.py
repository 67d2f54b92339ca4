"""Sources of a teacher: training on labelled images, a checkpoint, a program, a package or a registry.

Imports: common, models, data, training. Begin with `loading`, then `building` (a network by name) and `shapes` (its
guesses); `preflight` holds the checks for every teacher.
"""

"""The committed figures: each module measures one and returns its data and its page.

A module has ``measure(plan, ...) -> (data, markdown)``; ``results.write`` puts both beside each
other with where they come from. Every figure has a small version (``plan.quick``) that does all
of the same, with less.
"""

"""The committed figures: each module measures one.

A module has ``measure(plan, ...) -> (figure, page)``: a class and its Markdown.
``figure_plan.write_results`` writes both with their provenance. Every figure has a small version
(``plan.quick``) that takes the same steps with fewer prompts.
"""

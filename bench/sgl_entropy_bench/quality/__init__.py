"""Quality of answers: exact scores of arms on the same questions, intervals and a paired test.

``sgl-entropy eval`` asks servers over HTTP, as the load tester does; neither torch nor SGLang is
needed where it runs. Generated code runs in ``sandbox`` and nowhere else, mathematics is compared
in ``math_worker``.
"""

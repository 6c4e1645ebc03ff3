"""How fast the pool is, beside everything a user would pick instead: ``make bench`` or ``rtpool bench``.

Every module measures some rows of one table. A row holds one figure per round
and contestant; rounds are interleaved (everybody's first, then everybody's
second, ...), so what else the machine does hits all alike, and only ratios of
figures of the same round are reported.
"""

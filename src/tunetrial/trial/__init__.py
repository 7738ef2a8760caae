"""Trials: a study is locked and carried out, wave by wave, by worker processes that may die.

`waves` carries a study out, `conclusion` decides from what it left, `execution` is one trial. Nothing is imported
here: a worker process loads no more than a trial needs.
"""

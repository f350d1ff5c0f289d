"""Faults under load: real daemons and real mounts on hosts of their own, and what readers saw.

    python -m chaos list            what there is
    python -m chaos run kill        one scenario
    python -m chaos set             those that CI runs
    python -m chaos soak --minutes 30 --seed 7
    python -m chaos writers --seeds 20

A run makes hosts (network namespaces), a mesh on them, readers that check every
byte, and faults at times that a seed decides. It fails when a reader saw a wrong
byte or an error, when an expectation of the scenario was not met, and when the
fault cannot be shown to have fired. A timing that misses its goal is reported.
"""

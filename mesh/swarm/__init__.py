"""How readers of one version help each other: decisions only, no I/O.

    graph       who is whose neighbor: handed out by the owner of the file's directory
    scheduler   one reader: which block, from whom, now
    slots       one sender: who is served, who waits, who is sent elsewhere

Each is a state machine that is told what happened and the time, and says what to do; so
the very same code runs under gRPC, and under a clock that jumps with 10,000 peers.
"""

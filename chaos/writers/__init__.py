"""Writers that verify, while what they wrote to is killed, full, or away.

    python -m chaos writers --seeds 20

Each seed makes a mesh of four hosts whose files are safe on the disks of two peers when
close returns. Eight writers note what they try and what was acknowledged; in the end every
path must hold, on every mount and in the under-store, what was acknowledged last, or whole
what was tried after it.
"""

"""Benchmarks of mesh against a control measured in the same run.

    python -m bench.read          one mount: sequential, random, mmap; cold and warm
    python -m bench.xfer          peer to peer, in MB/s and CPU-seconds for each GB
    python -m bench.under_store   cold reads against the client library alone
    python -m bench.memory        resident memory under a thousand readers
    python -m bench.rivals        the same reads through JuiceFS and rclone

Each prints a table and writes it to out/bench-NAME.json. None asserts: the exit
code is 0 unless the run itself broke. Ratios are what counts; an absolute figure
says as much about the machine and its neighbors as about mesh.
"""

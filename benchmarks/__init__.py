"""What lorauter does measured against what others do; each prints a table and can write JSON."""

import os

# numpy and torch read their number of threads when they are imported; cores are shared by processes here
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

"""Make every fault of the suite and write the ledger: python benchmarks/faults.py [--thorough]."""

import sys
from pathlib import Path

from sciml.doctor.faults.ledger import examine_faults

if __name__ == "__main__":
    sys.exit(examine_faults(Path(__file__).parent / "results", thorough="--thorough" in sys.argv))

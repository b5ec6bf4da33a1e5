"""Reads or measures Fisher metrics, and chooses ranks of heads by them: kvcompress-analyze-fim by another name.

    python scripts/analyze_fim_metrics.py --model MODEL --text FILE --generate-compression-config
"""

import sys

from kvcompress.calibration.fisher_run import main

if __name__ == "__main__":
    sys.exit(main())

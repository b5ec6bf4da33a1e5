"""Calibrates a compressor of low rank on a model, and measures it: kvcompress-calibrate-low-rank by another name.

    python scripts/calibrate_kv_compressor.py --model MODEL --compressor kvsplice --config compression_config.json
"""

import sys

from kvcompress.calibration.low_rank_run import main

if __name__ == "__main__":
    sys.exit(main())

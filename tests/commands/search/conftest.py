import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # slow.py, which the processes of test_distributed.py import too

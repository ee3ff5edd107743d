import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # launched.py, which the processes of test_launch.py import too

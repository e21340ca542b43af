"""python -m tests.faults.fake_s3 PORT"""

from __future__ import annotations

import asyncio
import sys

from tests.faults.fake_s3.server import serve

if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))

"""How the template is asked: requests of five bytes, answers of four. Pure.

F 0000  with a socket attached: fork a worker that serves it; answers its pid
S 0000  the same, a worker that serves a series
R pid   a worker whose end is certain: reap it; answers its exit code, or minus the signal
"""

from __future__ import annotations

import struct

REQUEST = struct.Struct(">cI")
ANSWER = struct.Struct(">i")
FORK = b"F"
FORK_SERIES = b"S"
REAP = b"R"

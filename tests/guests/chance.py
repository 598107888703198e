"""A program in Python of all that differs from one run to the next, elsewhere."""

import os
import random
import secrets
import tempfile
import time
import uuid

began = time.monotonic()
time.sleep(3600)
assert 3600 <= time.monotonic() - began < 3601
for name in "zyx":
    with open(f"/out/{name}", "w") as file:
        file.write(name)
print({"a", "b", "c"}, hash("mesh"), random.random(), uuid.uuid4(), secrets.token_hex(8))
print(os.urandom(100_000)[-8:], id(object()), time.time(), time.gmtime()[:6], os.listdir("/out"))
print(tempfile.mkdtemp(), os.stat("/out/x"), os.getpid(), object())

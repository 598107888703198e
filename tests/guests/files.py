"""A program in Python that makes, changes and removes files wherever it may, and where not."""

import os
import shutil
import sqlite3
import tempfile
from pathlib import Path

print(sorted(os.listdir("/in")), os.path.exists("/etc"), os.getcwd())
os.makedirs("/out/deep/er")
Path("/out/deep/er/bytes").write_bytes(bytes(5000))
with open("/out/text", "a+") as file:
    file.write("first\n")
    file.seek(0)
    print(repr(file.read()), file.tell(), os.stat("/out/text").st_size)
os.rename("/out/text", "/out/ü")
shutil.copy("/in/main.py", "/tmp/copy.py")
shutil.copytree("/out/deep", "/tmp/deep")
shutil.rmtree("/tmp/deep")
os.unlink("/tmp/copy.py")
with tempfile.NamedTemporaryFile() as file, tempfile.TemporaryDirectory() as folder:
    file.write(b"x")
    print(file.name.startswith("/tmp/"), os.listdir(folder))
base = sqlite3.connect("/out/base.db")
base.execute("create table t (x)")
base.executemany("insert into t values (?)", ((n,) for n in range(2000)))
base.commit()
base.execute("delete from t where x % 2")
base.commit()
print(base.execute("select count(*), sum(x) from t").fetchone(), sorted(os.listdir("/tmp")))
base.close()
for at, folders, files in os.walk("/out"):
    print(at, folders, files)
for path, mode in (("/in/new", "w"), ("/in/main.py", "a"), ("/etc/passwd", "r"), ("/in/../x", "r")):
    try:
        open(path, mode).close()
    except OSError as error:
        print(path, error.strerror)
try:
    with open("/out/full", "wb") as file:
        while True:
            file.write(bytes(100_000))
except OSError as error:
    print(error.strerror)
os.unlink("/out/full")

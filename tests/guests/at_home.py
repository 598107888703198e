"""A program in Python that says the same wherever it runs; tests compare."""

import collections
import csv
import datetime
import decimal
import difflib
import fractions
import functools
import gzip
import hashlib
import heapq
import io
import itertools
import json
import math
import operator
import random
import re
import sqlite3
import statistics
import string
import struct
import textwrap
import zlib

print(json.dumps({"b": [1, 2.5, None, "é"], "a": {"x": True}}, sort_keys=True))
print(json.loads('{"n": 12345678901234567890, "f": 1e-7, "t": "\\u00e9"}'))
for name in ("md5", "sha1", "sha256", "sha3_512", "blake2b"):
    print(name, hashlib.new(name, b"mesh").hexdigest())
print(re.sub(r"(?P<who>\w+)@(\w+)", r"\2 at \g<who>", "ann@home, bob@work"))
print(re.findall("a+?b", "aab ab"))

random.seed(7)
print(random.random(), random.sample(range(1000), 5), random.gauss(0, 1))
decimal.getcontext().prec = 50
print(decimal.Decimal(2).sqrt(), fractions.Fraction(22, 7) - fractions.Fraction(355, 113))
print(math.factorial(200), 7**777 % 10**30, round(math.pi, 15), 0.1 + 0.2, 1e300 * 1e10)
print(statistics.stdev([1, 2, 3, 4.5]), datetime.date(2024, 2, 29) + datetime.timedelta(365))

data = sqlite3.connect(":memory:")
data.execute("create table t (word text, n integer)")
words = ["a", "bb", "ccc", "dd", "e"]
data.executemany("insert into t values (?, ?)", [(word, len(word)) for word in words])
print(data.execute("select n, count(*), group_concat(word) from t group by n").fetchall())

print(struct.pack("<If", 7, 1.5).hex(), zlib.crc32(b"mesh"))
print(zlib.decompress(zlib.compress(b"x" * 999))[-3:], gzip.decompress(gzip.compress(b"again")))
print(sorted(collections.Counter("mississippi").items()), heapq.nsmallest(3, [5, 1, 4, 2]))
print(list(itertools.permutations("abc", 2))[:3])
print(functools.reduce(operator.mul, range(1, 11)))
rows = io.StringIO()
csv.writer(rows).writerows([["a", 'say "b"'], [1, 2.5]])
print(repr(rows.getvalue()), textwrap.fill("many words " * 5, 30))
print(string.Template("$x").substitute(x=1))
print("".join(difflib.unified_diff(["a\n", "b\n"], ["a\n", "c\n"], "x", "y")))


def depth(n):
    return 0 if n == 0 else 1 + depth(n - 1)


class Shape:
    def __init__(self, *sides):
        self.sides = sides

    def __repr__(self):
        match self.sides:
            case (a, b) if a == b:
                return f"square {a}"
            case (a, b):
                return f"{a=} {b=}"
        return f"{len(self.sides)} sides"


def sums():
    total = 0
    while True:
        total += (yield total) or 1


walk = sums()
print(depth(800), Shape(2, 2), Shape(2, 3), Shape(1), next(walk), walk.send(5))
try:
    print({}["missing"])
except* KeyError as group:
    print(group.exceptions)

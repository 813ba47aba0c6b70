"""The golden files of the source tree (storer/golden): each in a folder of its own, with what it holds."""

import json
import pathlib
import shutil
import tempfile
import unittest

GOLDEN = pathlib.Path(__file__).resolve().parents[3] / "storer" / "golden"


def folders():
    found = sorted(path for path in GOLDEN.iterdir() if path.is_dir())
    assert found, f"no golden files in {GOLDEN}"
    return found


def expected(folder):
    return json.loads((folder / "expected.json").read_text(encoding="utf-8"))


def plain(value):
    """A value as it stands in expected.json: bytes as {"$bin": hex}."""
    if isinstance(value, bytes):
        return {"$bin": value.hex()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def exact(value):
    """The value as text that tells 1 from 1.0."""
    return json.dumps(plain(value), sort_keys=True)


class GoldenCase(unittest.TestCase):
    """A test with a copy of a golden file in `self.path`: readers write its lock file."""

    folder = folders()[-1]

    def setUp(self):
        self.path = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.path)
        shutil.copy(self.folder / "data.mdb", self.path)
        self.expected = expected(self.folder)

    def assertSame(self, found, wanted):
        self.assertEqual(exact(found), exact(wanted))

"""Every program of docs/RECIPES.md prints what stands below it, from the golden file it is written for."""

import doctest
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

import fieldstream_reader

ROOT = pathlib.Path(__file__).resolve().parents[3]
RECIPES = ROOT / "docs" / "RECIPES.md"
GOLDEN = ROOT / "storer" / "golden" / "v1"
BLOCKS = re.compile(r"^## (?P<title>.*?)\n.*?^```python\n(?P<program>.*?)^```\n+```text\n(?P<output>.*?)^```$", re.M | re.S)


def recipes():
    """Title, program and output of each."""
    text = RECIPES.read_text(encoding="utf-8")
    return [match.group("title", "program", "output") for match in BLOCKS.finditer(text)]


def data_directory(folder):
    """What `fieldstream up` has in its data directory, with a golden file as the storer's."""
    generation = folder / "fieldstream-data" / "storer" / "generations" / "1"
    generation.mkdir(parents=True)
    shutil.copy(GOLDEN / "data.mdb", generation)
    os.symlink("generations/1", generation.parents[1] / "db")


def run(program, folder):
    """What a program prints."""
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(fieldstream_reader.__file__).parents[1]), "PYTHONUTF8": "1"}
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    return ran.stdout + ran.stderr


class Recipes(unittest.TestCase):
    def test_all_programs_are_found(self):
        text = RECIPES.read_text(encoding="utf-8")
        self.assertEqual(len(recipes()), text.count("```python\n"))
        self.assertGreater(len(recipes()), 10)
        for title, _, output in recipes():
            self.assertTrue(output.strip(), f"{title} prints something")
            anchor = "#" + title.lower().replace(" ", "-")
            self.assertIn(f"]({anchor})", text, f"{title} is in the list")

    def test_what_they_print(self):
        checker = doctest.OutputChecker()
        with tempfile.TemporaryDirectory() as temporary:
            data_directory(pathlib.Path(temporary))
            for title, program, output in recipes():
                if "pyarrow" in program and importlib.util.find_spec("pyarrow") is None:
                    print(f"SKIPPED: recipe {title!r}, no pyarrow", file=sys.stderr)
                    continue
                with self.subTest(title):
                    found = run(program, temporary)
                    self.assertTrue(checker.check_output(output, found, doctest.ELLIPSIS), f"{title} prints\n{found}")


if __name__ == "__main__":
    unittest.main()

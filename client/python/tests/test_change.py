"""Primitive operations, by the rules of docs/FORMAT.md."""

import unittest

from fieldstream_reader import DamagedFile
from fieldstream_reader._change import apply, kind_of, tells_whole_state


class Changes(unittest.TestCase):
    def test_bodies_become_what_they_are_set_to(self):
        self.assertEqual(apply([[1, "a"]], {"x": 1}), "a")
        self.assertEqual(apply([[2, {"a": 1}]], "x"), {"a": 1})
        self.assertIsNone(apply([[7]], "x"))
        self.assertEqual(apply([[3, "b"], [3, "c"]], "a"), "abc")
        self.assertEqual(apply([[3, "b"]], None), "b")

    def test_edits_count_code_points_and_apply_in_sequence(self):
        edits = [[2, 1, "ß"], [4, 0, "!"], [0, 1, ""]]
        self.assertEqual(apply([[4, edits]], "añ𝄞z"), "ñßz!")
        with self.assertRaises(DamagedFile):
            apply([[4, [[3, 2, ""]]]], "abcd")

    def test_merge_follows_the_examples_of_rfc_7396(self):
        for target, patch, result in [
            ({"a": "b"}, {"a": "c"}, {"a": "c"}),
            ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
            ({"a": "b"}, {"a": None}, {}),
            ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
            ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
            ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
            ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
            ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
            ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
            ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
            (None, {"a": None, "b": 1}, {"b": 1}),
        ]:
            before = repr(target)
            self.assertEqual(apply([[5, patch]], target), result)
            self.assertEqual(repr(target), before, "the state before is left as it is")

    def test_values_at_paths(self):
        self.assertEqual(apply([[6, ["a", "b"], 1]], None), {"a": {"b": 1}})
        self.assertEqual(apply([[6, ["a"], None]], {"a": {"b": 1}, "c": 2}), {"a": None, "c": 2})
        with self.assertRaises(DamagedFile):
            apply([[6, ["a", "b"], 1]], {"a": 5})
        with self.assertRaises(DamagedFile):
            apply([[6, [], 1]], {})

    def test_what_does_not_fit_or_is_unknown(self):
        for change, body in [
            ([[3, "a"]], {}), ([[4, []]], None), ([[4, []]], {}), ([[5, {}]], "a"), ([[6, ["a"], 1]], "a"),
            ([[8, 1]], "a"), ([[]], "a"), ([[1]], None), ([["1", "a"]], None), ([[7, 1]], None),
        ]:  # fmt: skip
            with self.assertRaises(DamagedFile, msg=f"{change} on {body}"):
                apply(change, body)

    def test_which_tell_the_whole_state(self):
        whole = [[[1, "a"]], [[2, {}]], [[7]], [[3, "a"], [7]]]
        parts = [[[3, "a"]], [[4, []]], [[5, {}]], [[6, ["a"], 1]], [], [[]]]
        self.assertEqual([tells_whole_state(change) for change in whole + parts], [True] * 4 + [False] * 6)

    def test_kinds(self):
        self.assertEqual([kind_of(body) for body in (None, "", {})], ["absent", "text", "structured"])


if __name__ == "__main__":
    unittest.main()

"""scripts/junit.py on the JUnit file that ctest really writes: nothing that failed, timed out, was skipped or could not
be run is counted as passed."""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/junit.py"

TESTS = """
add_test(passes "true")
add_test(fails "false")
add_test(fails_inside "sh" "-c"
  "printf '[ RUN      ] A.B\\n[  FAILED  ] A.B, where GetParam() = 1 (0 ms)\\n'; false")
add_test(ends_inside "sh" "-c"
  "printf '[ RUN      ] A.A\\n[       OK ] A.A (0 ms)\\n[ RUN      ] A.C\\n'; false")
add_test(hangs "sleep" "100")
set_tests_properties(hangs PROPERTIES TIMEOUT 1)
add_test(crashes "sh" "-c" "kill -SEGV $$")
add_test(not_built "/nowhere/program")
add_test(skips "printf" "a_test.cc:1: Skipped\\\\nneeds root\\\\n[  SKIPPED ] A.B (0 ms)\\\\n")
set_tests_properties(skips PROPERTIES SKIP_REGULAR_EXPRESSION "SKIPPED")
add_test(skips_inside "printf"
  "[       OK ] A.A (0 ms)\\\\na_test.cc:1: Skipped\\\\nno tun\\\\n[  SKIPPED ] A.B (0 ms)\\\\n[  SKIPPED ] A.B\\\\n")
add_test(skips_in_python "python3" "-m" "unittest" "-v" "planted")
"""

PLANTED = """
import unittest

@unittest.skipUnless(False, "there is no browser")
class Page(unittest.TestCase):
    def test_looks(self) -> None: ...
"""


class Totals(unittest.TestCase):
    def test_adds_up_what_ctest_wrote(self) -> None:
        with tempfile.TemporaryDirectory(prefix="kvferry-totals-") as folder:
            (Path(folder) / "CTestTestfile.cmake").write_text(TESTS)
            (Path(folder) / "planted.py").write_text(PLANTED)
            junit = Path(folder) / "junit.xml"
            subprocess.run(
                ["ctest", "--test-dir", folder, "--output-junit", junit, "--test-output-size-passed", "100000"],
                capture_output=True,
                check=False,
            )
            ran = subprocess.run([sys.executable, SCRIPT, junit], capture_output=True, text=True, check=True)
        totals, *lines = ran.stdout.splitlines()
        self.assertEqual(totals, "3 6 3", ran.stdout)
        for name in ("fails", "hangs", "crashes", "not_built"):
            self.assertTrue(any(line.startswith(f"FAILED {name}") for line in lines), f"{name} in {lines}")
        self.assertTrue(any(line.startswith("FAILED fails_inside A.B after") for line in lines), str(lines))
        self.assertTrue(any(line.startswith("FAILED ends_inside A.C (not ended) after") for line in lines), str(lines))
        self.assertIn("skipped skips: needs root", lines)
        self.assertIn("skipped skips_inside A.B: no tun", lines)
        self.assertIn("skipped skips_in_python test_looks: there is no browser", lines)


if __name__ == "__main__":
    unittest.main()

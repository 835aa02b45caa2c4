"""The measurement of C++ functions behind scripts/lint budgets, on the shapes that this code base uses."""

import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts/lint.d"))
sys.dont_write_bytecode = True

from cpp import functions  # noqa: E402 - its folder is added above


def measured(text: str) -> list[tuple[str, int]]:
    return [(function.name, function.lines) for function in functions(text)]


class Functions(unittest.TestCase):
    def test_finds_free_functions_in_namespaces(self) -> None:
        text = "namespace a {\nnamespace {\nint f() {\n  return 1;\n}\n}  // namespace\nvoid g(int x) { x; }\n}\n"
        self.assertEqual(measured(text), [("f", 3), ("g", 1)])

    def test_counts_from_the_first_line_of_the_signature(self) -> None:
        self.assertEqual(measured("Result<int> f(int a,\n              int b) {\n  return a;\n}\n"), [("f", 4)])

    def test_finds_members_and_special_members(self) -> None:
        text = (
            "class KVFERRY_API X final : public Y {\n public:\n  X() : a_{1}, b_(2), c_{f(3)} {\n    g();\n  }\n"
            "  ~X() { }\n  bool operator==(const X& o) const {\n    return true;\n  }\n"
            "  explicit operator bool() const { }\n"
            "  int value() const noexcept override {\n    return 1;\n  }\n  int a_{0};\n  int b_ = 1;\n};\n"
        )
        self.assertEqual([lines for _, lines in measured(text)], [3, 1, 3, 1, 3])

    def test_sees_types_with_attributes_as_types(self) -> None:
        text = "struct alignas(64) Slot {\n  void f() {\n  }\n};\nclass CAPABILITY(x) M {\n  void g() {}\n};\n"
        self.assertEqual(measured(text), [("f", 2), ("g", 1)])

    def test_sees_templates(self) -> None:
        text = "template <class T, class U = std::vector<int>>\nvoid f(T t) {\n}\n"
        text += "template <class T>\nstruct S {\n  void g() {}\n};\n"
        self.assertEqual([name for name, _ in measured(text)], ["f", "g"])

    def test_is_not_fooled_by_braces_that_are_not_code(self) -> None:
        text = (
            '#define BEGIN {\nvoid f() {\n  auto a = "}"; // }\n  char b = \'}\'; /* } */\n  auto c = R"x(})" })x";\n'
            "  int d = 1'000'000;\n}\nvoid g() {}\n"
        )
        self.assertEqual(measured(text), [("f", 6), ("g", 1)])

    def test_takes_no_initializer_for_a_function(self) -> None:
        text = "const std::map<int, int> kTable = {\n  {f(1), 2},\n};\nint kArray[] = {1, 2};\nenum class E { a, b };\n"
        self.assertEqual(measured(text), [])

    def test_counts_lambdas_towards_their_function(self) -> None:
        self.assertEqual(measured("void f() {\n  g([](int x) {\n    return x;\n  });\n}\n"), [("f", 5)])

    def test_measures_gtest_cases_and_extern_c(self) -> None:
        text = 'TEST(Suite, Case) {\n  EXPECT_TRUE(true);\n}\nextern "C" int g(int x) {\n  return x;\n}\n'
        text += 'extern "C" {\nint h() {}\n}\n'
        self.assertEqual([lines for _, lines in measured(text)], [3, 3, 1])

    def test_sees_trailing_return_types(self) -> None:
        self.assertEqual(measured("auto f(int x) -> Foo::Bar {\n}\n"), [("f", 2)])


if __name__ == "__main__":
    unittest.main()

#include "thinkvg/core/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "tests/support/temporary_folder.h"
#include "thinkvg/core/files.h"

namespace thinkvg {
namespace {

using testing::HasSubstr;

Json from_yaml(const std::string& text) {
  const test::TemporaryFolder folder;
  write_file_atomically(folder / "a.yaml", text);
  return read_yaml_file(folder / "a.yaml");
}

std::string yaml_error(const std::string& text) {
  try {
    from_yaml(text);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Yaml, GivesScalarsTheirType) {
  const Json value = from_yaml(
      "a: 5\nb: -2\nc: 1e-5\nd: .5\ne: true\nf: text here\ng: '5'\nh: \"true\"\ni: ~\nj:\nk: 1.2.3\nl: !!str 7\nm: +3\n"
      "n: 0x10\no: nan\n");
  EXPECT_EQ(value, Json::parse(R"({"a": 5, "b": -2, "c": 1e-5, "d": 0.5, "e": true, "f": "text here", "g": "5",
                                   "h": "true", "i": null, "j": null, "k": "1.2.3", "l": "7", "m": 3, "n": "0x10",
                                   "o": "nan"})"));
  EXPECT_TRUE(value["a"].is_number_integer());
  EXPECT_TRUE(value["c"].is_number_float());
}

TEST(Yaml, KeepsTheOrderOfKeys) {
  const Json value = from_yaml("z: {b: 1, a: [1, two, [3]]}\na: 2\n");
  EXPECT_EQ(value.dump(), R"({"z":{"b":1,"a":[1,"two",[3]]},"a":2})");
}

TEST(Yaml, AnEmptyFileIsNull) {
  EXPECT_TRUE(from_yaml("").is_null());
  EXPECT_TRUE(from_yaml("# only a comment\n").is_null());
}

TEST(Yaml, NamesFileAndLineOfAnError) {
  EXPECT_THAT(yaml_error("a: 1\nb: [1, 2\n"), testing::AllOf(HasSubstr("a.yaml, line "), HasSubstr("not YAML")));
  EXPECT_THAT(yaml_error("a: 1\nb: 2\na: 3\n"), testing::AllOf(HasSubstr("line 3"), HasSubstr("'a' stands twice")));
  EXPECT_THAT(yaml_error("a:\n\tb: 1\n"), HasSubstr("line 2"));
}

TEST(Yaml, ReadsBackWhatItWrote) {
  const Json value = Json::parse(R"({
    "text": ["", " ", "a b", "true", "null", "~", "5", "1e5", "- x", "a: b", "#c", "line\nbreak", "tab\there", "quote\"'",
             "é ü 中", "{}", "[x]", "*a", "&b", "!c", "%d", "@e", "`f", "|", ">", "?", "-", "--- ", "\\n", "\u0001"],
    "numbers": [0, -1, 9223372036854775807, -9223372036854775808, 0.1, 1e-05, 1e300, 3.0, -0.5],
    "others": [true, false, null, [], {}],
    "nested": {"deep": {"er": {"list": [[1, [2]], {"k": "v"}]}}},
    "key: with # signs": 1, "5": "five", "true": 2, "": 3})");
  EXPECT_EQ(from_yaml(to_yaml(value)), value) << to_yaml(value);
  for (const char* scalar : {"5", "\"5\"", "[]", "{}", "null", "true"})
    EXPECT_EQ(from_yaml(to_yaml(Json::parse(scalar))), Json::parse(scalar));
}

TEST(JsonFile, NamesFileAndPlaceOfAnError) {
  const test::TemporaryFolder folder;
  write_file_atomically(folder / "a.json", "{\"a\": 1,}");
  try {
    read_json_file(folder / "a.json");
    FAIL() << "no error";
  } catch (const std::runtime_error& error) {
    EXPECT_THAT(error.what(), testing::AllOf(HasSubstr("a.json is not JSON"), HasSubstr("column 9")));
  }
  EXPECT_THROW(read_json_file(folder / "missing.json"), std::runtime_error);
}

}  // namespace
}  // namespace thinkvg

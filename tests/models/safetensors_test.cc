#include "thinkvg/models/safetensors.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "thinkvg/core/files.h"
#include "thinkvg/core/json.h"

namespace thinkvg::models {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

std::filesystem::path file_named(const std::string& name) {
  return std::filesystem::path(testing::TempDir()) / ("thinkvg_" + name + ".safetensors");
}

// A file out of header text and data bytes.
std::filesystem::path write_raw(const std::string& name, const std::string& header, const std::string& data) {
  const std::uint64_t length = header.size();
  std::string content(8, '\0');
  std::memcpy(content.data(), &length, 8);
  const auto file = file_named(name);
  write_file_atomically(file, content + header + data);
  return file;
}

void expect_failure(const std::filesystem::path& file, const std::string& text) {
  EXPECT_THAT([&] { read_safetensors(file); },
              ThrowsMessage<std::runtime_error>(testing::AllOf(HasSubstr(text), HasSubstr(file.string()))));
}

TEST(Safetensors, EveryDtypeComesBack) {
  const auto file = file_named("dtypes");
  NamedTensors tensors;
  for (const at::ScalarType type : {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong, at::kInt, at::kShort,
                                    at::kChar, at::kByte, at::kBool}) {
    tensors.emplace_back(c10::toString(type), at::arange(6).view({2, 3}).to(type));
  }
  tensors.emplace_back("scalar", at::scalar_tensor(2.5));
  tensors.emplace_back("empty", at::empty({0, 4}));
  tensors.emplace_back("strided", at::arange(6.0).view({2, 3}).t());
  write_safetensors(tensors, file);
  const auto got = read_safetensors(file);
  ASSERT_EQ(got.size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    EXPECT_EQ(got.at(name).scalar_type(), tensor.scalar_type()) << name;
    EXPECT_TRUE(got.at(name).equal(tensor)) << name;
  }
}

TEST(Safetensors, TensorsOutliveTheCall) {
  const auto file = file_named("outlive");
  write_safetensors({{"a", at::full({1000}, 3.0)}}, file);
  const at::Tensor kept = read_safetensors(file).at("a");
  std::filesystem::remove(file);
  EXPECT_EQ(kept.sum().item<double>(), 3000.0);
}

TEST(Safetensors, MisalignedTensorsAreRead) {
  const std::string header =
      R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"I16","shape":[2],"data_offsets":[1,5]}})";
  const auto got = read_safetensors(write_raw("misaligned", header, std::string("\x07\x01\x00\x02\x00", 5)));
  EXPECT_EQ(got.at("a").item<std::int64_t>(), 7);
  EXPECT_TRUE(got.at("b").equal(at::tensor({1, 2}, at::kShort)));
}

TEST(Safetensors, CorruptedFilesAreNamed) {
  expect_failure(file_named("absent"), "cannot be opened");
  const auto tiny = file_named("tiny");
  write_file_atomically(tiny, "abc");
  expect_failure(tiny, "too few");
  write_file_atomically(tiny, std::string(8, '\xff') + "{}");
  expect_failure(tiny, "truncated, or not a safetensors file");
  expect_failure(write_raw("text", "hello", ""), "not a JSON object");
  expect_failure(write_raw("list", "[]", ""), "not a JSON object");
  const std::string data(8, '\0');
  expect_failure(write_raw("dtype", R"({"a":{"dtype":"Q9","shape":[2],"data_offsets":[0,8]}})", data),
                 "unknown dtype 'Q9'");
  expect_failure(write_raw("incomplete", R"({"a":{"dtype":"F32","shape":[2]}})", data), "expected dtype, shape");
  expect_failure(write_raw("negative", R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", data),
                 "expected dtype, shape");
  expect_failure(write_raw("size", R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", data),
                 "needs 12 bytes");
  expect_failure(write_raw("reversed", R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", data),
                 "offsets are 8 to 0");
  expect_failure(
      write_raw("huge", R"({"a":{"dtype":"F32","shape":[9223372036854775807,9],"data_offsets":[0,8]}})", data),
      "too large");
  expect_failure(write_raw("outside", R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})", data), "truncated");
  expect_failure(write_raw("gap", R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", data), "gap at byte 0");
  expect_failure(write_raw("rest", R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", data), "end at byte 4");
  expect_failure(write_raw("overlap",
                           R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
                               "b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
                           data),
                 "overlap");
}

TEST(Safetensors, EveryTruncationIsFound) {
  const auto file = file_named("cut");
  write_safetensors({{"a", at::arange(20.0)}, {"b", at::arange(7)}}, file);
  const std::string content = read_file(file);
  for (std::size_t length = 0; length < content.size(); length += 5) {
    write_file_atomically(file, content.substr(0, length));
    EXPECT_THROW(read_safetensors(file), std::runtime_error) << length << " of " << content.size() << " bytes";
  }
}

TEST(Safetensors, AFailedWriteLeavesNothing) {
  const auto folder = std::filesystem::path(testing::TempDir()) / "thinkvg_no_such_folder";
  std::filesystem::remove_all(folder);
  EXPECT_THAT(
      [&] {
        write_safetensors({{"a", at::ones(1)}}, folder / "x.safetensors");
      },
      ThrowsMessage<std::runtime_error>(HasSubstr("x.safetensors")));
  EXPECT_THAT(
      [] {
        write_safetensors({{"a", at::ones(1)}, {"a", at::ones(1)}}, file_named("twice"));
      },
      ThrowsMessage<std::invalid_argument>(HasSubstr("two tensors are called 'a'")));
  EXPECT_THAT(
      [] {
        write_safetensors({{"a", at::ones(1, at::kComplexFloat)}}, file_named("complex"));
      },
      ThrowsMessage<std::invalid_argument>(HasSubstr("ComplexFloat")));
  EXPECT_FALSE(std::filesystem::exists(file_named("twice")));
}

TEST(Safetensors, AreConvertedWhileTheyAreWritten) {
  const auto file = file_named("converted");
  const at::Tensor small = at::arange(6, at::kFloat).view({2, 3}) / 7, ids = at::arange(3, at::kLong);
  write_safetensors({{"small", small}, {"ids", ids}}, file, at::kBFloat16);
  const auto read = read_safetensors(file);
  EXPECT_TRUE(read.at("small").equal(small.to(at::kBFloat16)));
  EXPECT_TRUE(read.at("ids").equal(ids));
  EXPECT_THAT(
      [&] {
        write_safetensors({{"large", small * 1e6}}, file, at::kHalf);
      },
      ThrowsMessage<std::runtime_error>(HasSubstr("'large' holds numbers above 65504")));
  EXPECT_TRUE(read_safetensors(file).contains("small"));  // the file that was there
}

TEST(Safetensors, WeightsAreSplitInOrder) {
  FolderContent content;
  content.texts["config.json"] = "{}";
  content.tensors["model.safetensors"] = {
      {"a", at::ones(10)}, {"b", at::ones(10)}, {"c", at::ones(100)}, {"d", at::ones(5)}, {"e", at::ones(15)}};
  const auto split_at = [&](std::int64_t max_file_bytes) {
    content.max_file_bytes = max_file_bytes;
    return split_weights(content);
  };
  EXPECT_EQ(split_at(560).tensors.size(), 1u);
  const FolderContent split = split_at(80);
  EXPECT_EQ(split.texts.size(), 2u);
  ASSERT_EQ(split.tensors.size(), 3u);
  const auto names = [&](const char* file) {
    std::string all;
    for (const auto& [name, tensor] : split.tensors.at(file)) all += name;
    return all;
  };
  EXPECT_EQ(names("model-00001-of-00003.safetensors"), "ab");
  EXPECT_EQ(names("model-00002-of-00003.safetensors"), "c");
  EXPECT_EQ(names("model-00003-of-00003.safetensors"), "de");
  const Json index = Json::parse(split.texts.at("model.safetensors.index.json"));
  EXPECT_EQ(index["metadata"]["total_size"], 560);
  EXPECT_EQ(index["metadata"]["total_parameters"], 140);
  EXPECT_EQ(index["weight_map"]["d"], "model-00003-of-00003.safetensors");
  content.dtype = at::kHalf;
  EXPECT_EQ(split_at(280).tensors.size(), 1u);
  EXPECT_THROW(split_at(0), std::invalid_argument);
  EXPECT_TRUE(split_weights({}).tensors.empty());
}

}  // namespace
}  // namespace thinkvg::models

#include "checkpoint/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <sstream>

#include "tests/checkpoint/sample_run.h"
#include "tests/support/compare.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;
using support::random_tensor;
using support::TemporaryDirectory;
using support::Tensor;

std::string content_of(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

std::string refusal(const std::string& header, int64_t data_bytes = 0) {
  try {
    (void)parse_safetensors_header(header, data_bytes, "x.safetensors");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadData) << error.what();
    return error.what();
  }
  return "";
}

TEST(Safetensors, EveryDTypeComesBack) {
  const TemporaryDirectory place;
  const fs::path path = place.path() / "x.safetensors";
  const std::vector<Tensor> tensors = [] {
    std::vector<Tensor> all;
    all.push_back(random_tensor(DType::kU8, {3}, 1, 50));
    all.push_back(random_tensor(DType::kF32, {2, 3, 4, 5}, 2));
    all.push_back(random_tensor(DType::kBF16, {7, 3}, 3));
    all.push_back(random_tensor(DType::kI64, {5}, 4, 1e12));
    all.push_back(random_tensor(DType::kI32, {2, 2}, 5, 1e6));
    all.push_back(random_tensor(DType::kU16, {3}, 6, 100));
    return all;
  }();
  std::vector<SafetensorsTensor> named;
  for (const Tensor& tensor : tensors) named.push_back({name_of(tensor.dtype()), tensor.view()});
  write_safetensors(path, named, {{"step", "7"}, {"quote", "a \"b\" \n"}});

  const SafetensorsFile file(path);
  EXPECT_EQ(file.tensors().size(), 6U);
  EXPECT_EQ(file.metadata().at("quote"), "a \"b\" \n");
  for (const Tensor& tensor : tensors) {
    const std::string name = name_of(tensor.dtype());
    EXPECT_EQ(file.find(name).begin % size_of(tensor.dtype()), 0);
    EXPECT_TRUE(file.contains(name));
    const Tensor back(tensor.dtype(), tensor.shape());
    file.read(name, back);
    EXPECT_EQ(support::to_doubles(back.view()), support::to_doubles(tensor.view())) << name;
  }
  EXPECT_FALSE(file.contains("none"));
  EXPECT_FALSE(fs::exists(path.string() + ".tmp"));
}

// Byte for byte, as any other program reads it.
TEST(Safetensors, WritesTheFormat) {
  const TemporaryDirectory place;
  const fs::path path = place.path() / "x.safetensors";
  const Tensor b = support::from_ints({1, -2});
  const Tensor a = support::filled(DType::kBF16, {1, 1}, 1);
  write_safetensors(path, std::vector<SafetensorsTensor>{{"a", a.view()}, {"b", b.view()}});
  const std::string header = R"({"a":{"data_offsets":[8,10],"dtype":"BF16","shape":[1,1]},)"
                             R"("b":{"data_offsets":[0,8],"dtype":"I32","shape":[2]}})";
  const std::string content = content_of(path);
  const size_t padded = (header.size() + 7) / 8 * 8;
  EXPECT_EQ(content.substr(0, 8), std::string(1, static_cast<char>(padded)) + std::string(7, '\0'));
  EXPECT_EQ(content.substr(8, padded), header + std::string(padded - header.size(), ' '));
  EXPECT_EQ(content.substr(8 + padded), std::string("\x01\0\0\0\xFE\xFF\xFF\xFF\x80\x3F", 10));
}

TEST(Safetensors, WritesTensorByTensor) {
  const TemporaryDirectory place;
  const Tensor a = random_tensor(DType::kBF16, {3, 4}, 1);
  const Tensor b = random_tensor(DType::kF32, {5}, 2);
  std::vector<SafetensorsTensor> all{{"a", a.view()}, {"b", b.view()}};
  write_safetensors(place.path() / "whole", all, {{"format", "pt"}});
  SafetensorsWriter writer(Directory(place.path()).create("parts"),
                           {{.name = "a", .dtype = DType::kBF16, .shape = {3, 4}},
                            {.name = "b", .dtype = DType::kF32, .shape = {5}}},
                           {{"format", "pt"}});
  ASSERT_EQ(writer.tensors()[0].name, "b");
  support::expect_error([&] { writer.append(a); }, "b is bf16 [3, 4], expected f32 [5]");
  support::expect_error([&] { writer.finish(); }, "lacks tensor b");
  writer.append(b);
  writer.append(a);
  support::expect_error([&] { writer.append(a); }, "has all its tensors already");
  writer.finish();
  EXPECT_EQ(content_of(place.path() / "parts"), content_of(place.path() / "whole"));

  const SafetensorsFile file(place.path() / "parts");
  std::vector<std::byte> bytes(8);
  file.read_bytes(file.find("a"), 4, bytes);
  EXPECT_EQ(std::memcmp(bytes.data(), static_cast<const std::byte*>(a.view().data()) + 4, 8), 0);
  support::expect_error([&] { file.read_bytes(file.find("b"), 16, bytes); }, "not within tensor b");
}

TEST(Safetensors, HalvesReadAsTheirBits) {
  const SafetensorsHeader header =
      parse_safetensors_header(R"({"h":{"dtype":"F16","shape":[3],"data_offsets":[0,6]},)"
                               R"("u":{"dtype":"U16","shape":[1],"data_offsets":[6,8]}})",
                               8, "x");
  EXPECT_TRUE(header.tensors[0].is_f16);
  EXPECT_EQ(header.tensors[0].dtype, DType::kU16);
  EXPECT_FALSE(header.tensors[1].is_f16);
}

TEST(Safetensors, ReadsWhatOthersWrite) {
  const SafetensorsHeader header = parse_safetensors_header(
      R"( {"b" : {"dtype":"I64","shape":[2,1],"data_offsets":[0,16]}, "scalar":{"shape":[],)"
      R"("dtype":"F32","data_offsets":[16,20]},"none":{"dtype":"U8","shape":[0],)"
      R"("data_offsets":[20,20]},"__metadata__":{"format":"pt"}}   )" +
          1,
      20, "x");
  ASSERT_EQ(header.tensors.size(), 3U);
  EXPECT_EQ(header.tensors[0].name, "b");
  EXPECT_EQ(header.tensors[0].shape, (Shape{2, 1}));
  EXPECT_EQ(header.tensors[2].shape, (Shape{1}));
  EXPECT_EQ(header.metadata.at("format"), "pt");
  EXPECT_EQ(refusal("{}"), "");
}

TEST(Safetensors, RefusesHeadersThatAreWrong) {
  const auto one = [](const std::string& body) { return "{\"a\":{" + body + "}}"; };
  const std::string good = R"("dtype":"F32","shape":[2],"data_offsets":[0,8])";
  EXPECT_EQ(refusal(one(good), 8), "");
  const std::vector<std::tuple<std::string, int64_t, std::string>> cases{
      {"", 0, "does not begin with {"},
      {"[]", 0, "does not begin with {"},
      {" {}", 0, "does not begin with {"},
      {"{", 0, "no valid JSON"},
      {"{}{}", 0, "no valid JSON"},
      {one(good), 9, "has 9 bytes of data, expected 8"},
      {one(good), 7, "expected 8"},
      {one(R"("dtype":"F32","shape":[2],"data_offsets":[0,7])"), 7, "data_offsets 8 bytes apart"},
      {one(R"("dtype":"F32","shape":[2],"data_offsets":[8,0])"), 8, "data_offsets"},
      {one(R"("dtype":"F32","shape":[2],"data_offsets":[0])"), 8, "data_offsets"},
      {one(R"("dtype":"F32","shape":[2],"data_offsets":[4,12])"), 12, "begins at byte 4"},
      {one(R"("dtype":"F64","shape":[1],"data_offsets":[0,8])"), 8, "dtype F64"},
      {one(R"("shape":[1],"data_offsets":[0,8])"), 8, "lacks a key"},
      {one(R"("dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8])"), 8, "twice"},
      {one(good + R"(,"more":1)"), 8, "unknown key"},
      {one(R"("dtype":"F32","shape":[-2],"data_offsets":[0,8])"), 8, "a negative number"},
      {one(R"("dtype":"F32","shape":[2.0],"data_offsets":[0,8])"), 8, "a fraction"},
      {one(R"("dtype":"F32","shape":[[2]],"data_offsets":[0,8])"), 8, "a list"},
      {one(R"("dtype":"F32","shape":[1,1,1,1,2],"data_offsets":[0,8])"), 8, "5 axes"},
      {one(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8])"), 8, "large"},
      {one(R"("dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,8])"), 8, "2^60"},
      {one(R"("dtype":["F32"],"shape":[2],"data_offsets":[0,8])"), 8, "a list where none"},
      {one(R"("dtype":"F32","shape":"2","data_offsets":[0,8])"), 8, "a string where none"},
      {R"({"a":null})", 0, "a null"},
      {R"({"a":{)" + good + R"(},"a":{)" + good + "}}", 8, "begins at byte 0"},
      {R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)"
       R"("a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})",
       0, "is there twice"},
      {R"({"a":{)" + good + R"(},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12,
       "begins at byte 4"},
      {R"({"__metadata__":{"a":1}})", 0, "a number where none"},
      {R"({"__metadata__":{"a":"1","a":"2"}})", 0, "a metadata key twice"},
      {R"({"__metadata__":{},"__metadata__":{}})", 0, "metadata twice"},
      {R"({"__metadata__":{"a":{}}})", 0, "an object where none"},
      {R"({"a":[]})", 0, "a list where none"},
      {R"({"a":1})", 0, "a number where none"},
  };
  for (const auto& [header, bytes, complaint] : cases) {
    EXPECT_NE(refusal(header, bytes).find(complaint), std::string::npos)
        << header << ": \"" << refusal(header, bytes) << "\"";
  }
}

TEST(Safetensors, RefusesFilesThatAreCutOff) {
  const TemporaryDirectory place;
  const fs::path path = place.path() / "x.safetensors";
  const Tensor tensor = random_tensor(DType::kF32, {3}, 1);
  const SafetensorsTensor named{"a", tensor.view()};
  write_safetensors(path, {&named, 1});
  const std::string content = content_of(path);
  for (size_t length = 0; length < content.size(); ++length) {
    std::ofstream(path, std::ios::binary) << content.substr(0, length);
    EXPECT_THROW(SafetensorsFile file(path), Error) << length;
  }
  std::ofstream(path, std::ios::binary) << std::string(8, '\xFF') << content;
  EXPECT_THROW(SafetensorsFile file(path), Error);
  EXPECT_THROW(SafetensorsFile file(place.path()), Error);
  EXPECT_THROW(SafetensorsFile file(place.path() / "none"), Error);
}

TEST(Safetensors, SaysWhenATensorIsNotTheOneExpected) {
  const TemporaryDirectory place;
  const fs::path path = place.path() / "x.safetensors";
  const Tensor tensor = random_tensor(DType::kF32, {3}, 1);
  const SafetensorsTensor named{"a", tensor.view()};
  write_safetensors(path, {&named, 1});
  const SafetensorsFile file(path);
  const Tensor other(DType::kF32, {4});
  try {
    file.read("a", other);
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("tensor a is f32 [3], expected f32 [4]"),
              std::string::npos);
  }
  EXPECT_THROW(file.read("b", other), Error);
  const std::vector<SafetensorsTensor> twice{named, named};
  EXPECT_THROW(write_safetensors(path, twice), Error);
}

}  // namespace
}  // namespace tessera

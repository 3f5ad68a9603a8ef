#include "checkpoint/weight_index.h"

#include <gtest/gtest.h>

#include "kernels/core/error.h"

namespace tessera {
namespace {

std::string refusal(const std::string& text) {
  try {
    (void)parse_weight_index(text, "x.json");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadData);
    return error.what();
  }
  return "";
}

TEST(WeightIndex, ReadsWhatOthersWrite) {
  const WeightMap files = parse_weight_index(
      R"({"metadata":{"total_size":12,"more":[1,{"weight_map":2}]},)"
      R"("weight_map":{"b":"model-00002-of-00002.safetensors","a":"m.safetensors"},"x":null})",
      "x.json");
  EXPECT_EQ(files, (WeightMap{{"a", "m.safetensors"}, {"b", "model-00002-of-00002.safetensors"}}));
  EXPECT_TRUE(parse_weight_index(R"({"weight_map":{}})", "x.json").empty());
}

TEST(WeightIndex, ReadsBackWhatItWrites) {
  const WeightMap files{{"a \"b\"", "m.safetensors"}, {"c", "n.safetensors"}};
  const std::string text = weight_index_text(files, int64_t{1} << 40);
  EXPECT_EQ(parse_weight_index(text, "x.json"), files);
  EXPECT_NE(text.find("\"total_size\": 1099511627776"), std::string::npos) << text;
}

TEST(WeightIndex, RefusesWhatIsWrong) {
  const auto map = [](const std::string& body) { return R"({"weight_map":{)" + body + "}}"; };
  const std::vector<std::pair<std::string, std::string>> cases{
      {"", "no valid JSON"},
      {"[]", "does not begin with {"},
      {"3", "does not begin with {"},
      {"{}", "has no weight_map"},
      {R"({"a":{"weight_map":{}}})", "has no weight_map"},
      {R"({"weight_map":{},"weight_map":{}})", "two weight_maps"},
      {R"({"weight_map":[]})", "weight_map that is no object"},
      {R"({"weight_map":"a"})", "weight_map that is no object"},
      {map(R"("a":1)"), "no file name for tensor a"},
      {map(R"("a":{})"), "no file name for tensor a"},
      {map(R"("a":["b"])"), "no file name for tensor a"},
      {map(R"("a":"x.safetensors","a":"x.safetensors")"), "has tensor a twice"},
      {map(R"("a":"../x.safetensors")"), "in \"../x.safetensors\", expected a file name"},
      {map(R"("a":"/etc/x.safetensors")"), "expected a file name"},
      {map(R"("a":"b/x.safetensors")"), "without a folder"},
      {map(R"("a":".x.safetensors")"), "expected a file name"},
      {map(R"("a":"x\u0000.safetensors")"), "in \"x?.safetensors\""},
      {map(R"("a":"x.bin")"), "ending in .safetensors"},
      {map(R"("a":")" + std::string(300, 'x') + R"(.safetensors")"), "expected a file name"},
      {map("\"a\":\"x.safetensors\"") + "{}", "no valid JSON"},
      {R"({"a":)" + std::string(100, '['), "nested too deeply"},
      {R"({"a":)" + std::string(1'000'000, '['), "nested too deeply"},
  };
  for (const auto& [text, reason] : cases) {
    const std::string found = refusal(text);
    EXPECT_NE(found.find(reason), std::string::npos) << text.substr(0, 80) << "\n" << found;
    EXPECT_LT(found.size(), 400u);
  }
}

}  // namespace
}  // namespace tessera

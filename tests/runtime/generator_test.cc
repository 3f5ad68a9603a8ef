#include "runtime/generate/generator.h"

#include <gtest/gtest.h>

#include <map>

#include "tests/model/tiny_model.h"
#include "tests/support/compare.h"

namespace tessera {
namespace {

using support::tiny_config;

/// A model as it begins, as if it had been loaded.
LoadedModel fresh_model(Stream& stream, const TrainConfig& config) {
  LoadedModel loaded;
  loaded.config = std::make_unique<TrainConfig>(config);
  loaded.step = config.steps();
  loaded.dtype = DType::kF32;
  loaded.store = std::make_unique<ParameterStore>();
  loaded.model = std::make_unique<Transformer>(config.model(), loaded.dtype, Recompute::kNothing,
                                               *loaded.store);
  loaded.store->allocate(stream.device(), /*gradients=*/false);
  loaded.store->initialize(stream, config.seed());
  return loaded;
}

std::vector<GenerateRequest> requests() {
  std::vector<GenerateRequest> all;
  for (int32_t i = 0; i < 7; ++i) {
    GenerateRequest request{
        .prompt = {},
        .tokens = 3 + 9 * i % 40,
        .sampler = {.temperature = i % 2 == 0 ? 0.0 : 1.0, .seed = static_cast<uint64_t>(i)}};
    for (int32_t j = 0; j < 1 + i * 11 % 31; ++j) request.prompt.push_back((7 * j + i) % 61);
    all.push_back(std::move(request));
  }
  return all;
}

std::map<size_t, GeneratedText> generate(Stream& stream, const LoadedModel& loaded,
                                         std::span<const GenerateRequest> of, int64_t sequences,
                                         int32_t end_of_document = -1) {
  std::map<size_t, GeneratedText> texts;
  Generator generator(loaded, stream, {.sequences = sequences, .tokens = 80});
  generator.run(of, end_of_document, [&](size_t number, const GeneratedText& text) {
    EXPECT_TRUE(texts.emplace(number, text).second) << number;
  });
  return texts;
}

// Fewer places than texts, so that places are taken over; more, so that some stay free.
TEST(Generator, ATextIsTheSameWhateverIsBesideIt) {
  Stream stream(Device{}, 2);
  const LoadedModel loaded = fresh_model(stream, tiny_config());
  const std::vector<GenerateRequest> all = requests();
  std::map<size_t, GeneratedText> alone;
  for (size_t i = 0; i < all.size(); ++i) {
    alone[i] = generate(stream, loaded, std::span(all).subspan(i, 1), 1)[0];
    EXPECT_EQ(std::ssize(alone[i].tokens), all[i].tokens);
    EXPECT_FALSE(alone[i].ended);
  }
  for (const int64_t sequences : {1, 3, 10}) {
    const auto together = generate(stream, loaded, all, sequences);
    ASSERT_EQ(together.size(), all.size());
    for (const auto& [i, text] : together) {
      EXPECT_EQ(text.tokens, alone[i].tokens) << sequences << " at a time, text " << i;
    }
  }
}

// Room for a forward of its prompt is made when it comes.
TEST(Generator, ALongerPromptMayComeLater) {
  Stream stream(Device{}, 1);
  const LoadedModel loaded = fresh_model(stream, tiny_config());
  std::vector<GenerateRequest> all = requests();
  for (int32_t j = 0; j < 40; ++j) all[1].prompt.push_back(5 * j % 61);
  const CacheSize size{.sequences = 1, .tokens = 80};
  Generator generator(loaded, stream, size);
  for (const size_t i : {0, 1, 2}) {
    const std::span<const GenerateRequest> one = std::span(all).subspan(i, 1);
    Generator fresh(loaded, stream, size);
    std::vector<std::vector<int32_t>> texts;
    for (Generator* const each : {&generator, &fresh}) {
      each->run(one, -1, [&](size_t, const GeneratedText& text) { texts.push_back(text.tokens); });
    }
    ASSERT_EQ(texts.size(), 2);
    EXPECT_EQ(std::ssize(texts[0]), all[i].tokens);
    EXPECT_EQ(texts[0], texts[1]) << i;
  }
}

// The token that a text draws after some others is made the end of documents: it ends there.
TEST(Generator, ATextEndsWithItsDocument) {
  Stream stream(Device{}, 1);
  const LoadedModel loaded = fresh_model(stream, tiny_config());
  const std::vector<GenerateRequest> all = requests();
  const auto whole = generate(stream, loaded, all, 4);
  const int32_t end = whole.at(5).tokens.back();
  const auto cut = generate(stream, loaded, all, 4, end);
  ASSERT_EQ(cut.size(), all.size());
  for (const auto& [i, text] : cut) {
    std::vector<int32_t> expected = whole.at(i).tokens;
    const auto found = std::ranges::find(expected, end);
    EXPECT_EQ(text.ended, found != expected.end()) << i;
    expected.erase(found, expected.end());
    EXPECT_EQ(text.tokens, expected) << i;
  }
  EXPECT_TRUE(cut.at(5).ended);
}

TEST(Generator, SaysWhatDoesNotFit) {
  Stream stream(Device{}, 1);
  const LoadedModel loaded = fresh_model(stream, tiny_config());
  const auto expect = [&](const GenerateRequest& request, const std::string& sentence) {
    const std::vector<GenerateRequest> both{requests()[0], request};
    support::expect_error([&] { generate(stream, loaded, both, 2); }, sentence);
  };
  expect(
      {.prompt = {}, .tokens = 3, .sampler = {}},
      "a prompt has 0 tokens and 3 more were asked for, expected at least 1 of each and together "
      "at most 80");
  expect({.prompt = {1, 2}, .tokens = 79, .sampler = {}},
         "a prompt has 2 tokens and 79 more were asked for, expected at least 1 of each and "
         "together at most 80");
  expect({.prompt = {1, 61}, .tokens = 1, .sampler = {}},
         "token 61 of a prompt is not in the model's vocabulary of 61");
  const LoadedModel dropping = fresh_model(stream, tiny_config({"model.moe.capacity_factor=1.2"}));
  support::expect_error([&] { generate(stream, dropping, requests(), 2); },
                        "the generator's model has experts with a capacity, which would drop "
                        "tokens of one text for another's; load it without");
}

}  // namespace
}  // namespace tessera

#include "runtime/data/tokenizer.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <utility>

#include "kernels/core/error.h"
#include "runtime/data/text_cut.h"

namespace tessera {

namespace {

constexpr int32_t kBytes = 256;
constexpr const char* kReplacement = "\xEF\xBF\xBD";  // U+FFFD
// Bytes, <unk> and </s> are always part of a vocabulary; some room must be left to learn.
constexpr int32_t kLeastVocabulary = kBytes + 2 + 32;
constexpr int32_t kMostVocabulary = 1'000'000;
// SentencePiece takes about 90 bytes of memory for each byte of text it encodes at once.
constexpr size_t kPieceBytes = size_t{64} << 10;

/// Feeds text to the trainer line by line.
class LineIterator final : public sentencepiece::SentenceIterator {
 public:
  explicit LineIterator(const NextText& next) : next_(next) { Next(); }

  bool done() const override { return done_; }
  const std::string& value() const override { return line_; }
  sentencepiece::util::Status status() const override { return {}; }
  void Next() override {
    while (at_ == text_.size()) {
      at_ = 0;
      text_.clear();
      if (!next_(text_)) {
        done_ = true;
        return;
      }
    }
    size_t end = text_.find('\n', at_);
    end = end == std::string::npos ? text_.size() : end + 1;
    line_.assign(text_, at_, end - at_);
    at_ = end;
  }

 private:
  const NextText& next_;
  std::string text_;
  std::string line_;
  size_t at_ = 0;
  bool done_ = false;
};

/// SentencePiece's message without "./src/file.cc(line) [condition] " in front.
std::string reason(const sentencepiece::util::Status& status) {
  const std::string message = status.message();
  const size_t end = message.rfind("] ");
  if (end == std::string::npos || !message.starts_with("./src/")) return message;
  const std::string rest = message.substr(end + 2);
  return rest.empty() ? "there is too little text" : rest;
}

}  // namespace

struct Tokenizer::SentencePiece {
  sentencepiece::SentencePieceProcessor processor;
};

Tokenizer::Tokenizer() : vocabulary_(kBytes + 1), end_of_document_(kBytes) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

Tokenizer Tokenizer::from_model(std::string model, const std::string& name) {
  Tokenizer tokenizer;
  if (model.empty()) return tokenizer;
  tokenizer.sentence_piece_ = std::make_unique<SentencePiece>();
  auto& processor = tokenizer.sentence_piece_->processor;
  const auto status = processor.LoadFromSerializedProto(model);
  if (!status.ok()) {
    throw Error(ExitCode::kBadData,
                concat(name, " is not a SentencePiece model: ", reason(status)));
  }
  tokenizer.vocabulary_ = processor.GetPieceSize();
  tokenizer.end_of_document_ = processor.eos_id();
  if (tokenizer.end_of_document_ < 0) {
    throw Error(ExitCode::kBadData, concat(name,
                                           " has no end-of-sentence piece </s>, which "
                                           "marks the end of a document; train it with one"));
  }
  tokenizer.model_ = std::move(model);
  return tokenizer;
}

const char* Tokenizer::kind() const {
  return sentence_piece_ ? "sentencepiece" : "byte";
}

void Tokenizer::encode(std::string_view text, std::vector<int32_t>& tokens) const {
  if (!sentence_piece_) {
    const size_t first = tokens.size();
    tokens.resize(first + text.size());
    for (size_t i = 0; i < text.size(); ++i) tokens[first + i] = static_cast<uint8_t>(text[i]);
    return;
  }
  std::vector<int> ids;
  while (!text.empty()) {
    const bool last = text.size() <= kPieceBytes;
    const size_t size = last ? text.size() : text_cut(text.substr(0, kPieceBytes));
    const auto status = sentence_piece_->processor.Encode(text.substr(0, size), &ids);
    CHECK(status.ok(), "tokenizer: SentencePiece cannot encode: ", status.message());
    tokens.insert(tokens.end(), ids.begin(), ids.end());
    text.remove_prefix(size);
  }
}

std::string Tokenizer::decode(std::span<const int32_t> tokens) const {
  std::string text;
  std::vector<int> known;
  // Pieces depend on their neighbours (bytes of one character), so runs are decoded together.
  const auto flush = [&] {
    if (known.empty()) return;
    std::string run;
    const auto status = sentence_piece_->processor.Decode(known, &run);
    CHECK(status.ok(), "tokenizer: SentencePiece cannot decode: ", status.message());
    text += run;
    known.clear();
  };
  for (const int32_t token : tokens) {
    if (token < 0 || token >= vocabulary_) {
      flush();
      text += kReplacement;
    } else if (token == end_of_document_) {
      flush();
    } else if (sentence_piece_) {
      known.push_back(token);
    } else {
      text += static_cast<char>(token);
    }
  }
  flush();
  return text;
}

std::string train_sentence_piece(const NextText& next, int32_t vocabulary) {
  if (vocabulary < kLeastVocabulary || vocabulary > kMostVocabulary) {
    throw Error(ExitCode::kUsage,
                concat("a vocabulary of ", vocabulary, " cannot be trained: give ",
                       kLeastVocabulary, " to ", kMostVocabulary));
  }
  LineIterator lines(next);
  std::string model;
  const auto status =
      sentencepiece::SentencePieceTrainer::Train({{"model_type", "bpe"},
                                                  {"vocab_size", std::to_string(vocabulary)},
                                                  {"byte_fallback", "true"},
                                                  {"normalization_rule_name", "identity"},
                                                  {"remove_extra_whitespaces", "false"},
                                                  {"add_dummy_prefix", "false"},
                                                  {"allow_whitespace_only_pieces", "true"},
                                                  {"character_coverage", "0.9999"},
                                                  {"max_sentence_length", "65536"},
                                                  {"unk_id", "0"},
                                                  {"eos_id", "1"},
                                                  {"bos_id", "-1"},
                                                  {"pad_id", "-1"},
                                                  {"minloglevel", "2"}},
                                                 &lines, &model);
  if (!status.ok()) {
    throw Error(ExitCode::kUsage, concat("a vocabulary of ", vocabulary,
                                         " cannot be trained on this text: ", reason(status)));
  }
  return model;
}

}  // namespace tessera

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tessera {

/// Text to tokens and back. Two kinds:
/// * bytes: token b is byte b, so any bytes go through unchanged; token 256 ends a document; the
///   vocabulary is 257.
/// * SentencePiece: a trained model (Kudo & Richardson 2018, arXiv:1808.06226); its </s> ends a
///   document. Invalid UTF-8 becomes U+FFFD, and U+2581 reads back as a space. A text of more
///   than 64 KiB is encoded in pieces, cut as text_cut() says.
/// Constant after construction: any number of threads may use it at once.
class Tokenizer {
 public:
  /// The byte tokenizer.
  Tokenizer();
  /// `model` is the content of a SentencePiece model file; empty means the byte tokenizer.
  /// `name` is for messages. Throws Error (kBadData) when it is no usable model.
  static Tokenizer from_model(std::string model, const std::string& name);

  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  /// "byte" or "sentencepiece".
  const char* kind() const;
  /// What from_model() takes: how a tokenizer is saved.
  const std::string& model() const { return model_; }
  /// Tokens are in [0, vocabulary).
  int32_t vocabulary() const { return vocabulary_; }
  int32_t end_of_document() const { return end_of_document_; }

  /// Appends the tokens of `text`, without an end of document.
  void encode(std::string_view text, std::vector<int32_t>& tokens) const;
  /// The text of `tokens`. An end of document is empty; a number that is no token of the
  /// vocabulary (a model may be wider than its tokenizer) is U+FFFD.
  std::string decode(std::span<const int32_t> tokens) const;

 private:
  struct SentencePiece;

  std::string model_;
  std::unique_ptr<SentencePiece> sentence_piece_;  // empty for bytes
  int32_t vocabulary_;
  int32_t end_of_document_;
};

/// The text to train a tokenizer on: stores the next piece and returns true, or returns false.
using NextText = std::function<bool(std::string& text)>;

/// Trains a BPE SentencePiece model on lines with their line ends, and returns the model file's
/// content. Nothing is normalised, spaces in a row may form one piece, and what the vocabulary
/// lacks is spelled in bytes, so any valid UTF-8 reads back as it was (but see U+2581 above).
/// Throws Error (kUsage) when `vocabulary` does not fit the text. Memory: about 20 times the text.
std::string train_sentence_piece(const NextText& next, int32_t vocabulary);

}  // namespace tessera

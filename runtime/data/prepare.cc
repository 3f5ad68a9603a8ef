#include "runtime/data/prepare.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <iomanip>
#include <system_error>
#include <thread>
#include <utility>

#include "kernels/core/log.h"
#include "kernels/core/random.h"
#include "kernels/core/thread_pool.h"
#include "runtime/data/preparation.h"
#include "runtime/data/progress.h"

namespace tessera {

namespace {

namespace fs = std::filesystem;

constexpr int64_t kBatchBytes = int64_t{8} << 20;
constexpr double kTrainingBytes = 32e6;
constexpr std::string_view kTrainPrefix = "train:";

/// 0 when the tokenizer is not to be trained.
int32_t vocabulary_to_train(const std::string& tokenizer) {
  if (!tokenizer.starts_with(kTrainPrefix)) return 0;
  int32_t vocabulary = 0;
  const char* end = tokenizer.data() + tokenizer.size();
  const auto parsed = std::from_chars(tokenizer.data() + kTrainPrefix.size(), end, vocabulary);
  if (parsed.ec != std::errc() || parsed.ptr != end || vocabulary < 1) {
    throw Error(ExitCode::kUsage, concat("--tokenizer ", tokenizer,
                                         ": expected train:VOCABULARY, for example train:8192"));
  }
  return vocabulary;
}

/// The byte tokenizer also stands for one that is to be trained.
Tokenizer given_tokenizer(const std::string& tokenizer) {
  if (tokenizer == "byte" || vocabulary_to_train(tokenizer) > 0) return {};
  std::string model = read_file(tokenizer, ExitCode::kUsage);
  if (model.empty()) {
    throw Error(ExitCode::kBadData, concat("--tokenizer ", tokenizer, " is empty"));
  }
  return Tokenizer::from_model(std::move(model), concat("--tokenizer ", tokenizer));
}

std::string fingerprint(const PrepareOptions& options, const std::vector<TextFile>& files,
                        const std::string& model) {
  Fingerprint print;
  print.add("tessera data set 1");
  print.add(model.empty() ? options.tokenizer : model);
  print.add(std::setprecision(17), options.validation, ' ', options.seed);
  print.add(options.text.json_field, ' ', options.text.skip_bad_lines);
  for (const TextFile& file : files) {
    std::error_code ignored;
    const fs::path path = fs::absolute(file.path, ignored).lexically_normal();
    print.add(path.native(), '\0', file.bytes, ' ', file.modified_ns, ' ', file.named);
  }
  return print.text();
}

int64_t bytes_of(const std::vector<TextFile>& files) {
  int64_t bytes = 0;
  for (const TextFile& file : files) bytes += file.bytes;
  return bytes;
}

/// Trains on the whole text, or on documents drawn evenly from it when there is much.
std::string train_tokenizer(const PrepareOptions& options, const std::vector<TextFile>& files,
                            int32_t vocabulary) {
  const auto bytes = static_cast<double>(bytes_of(files));
  const double share = std::min(1.0, kTrainingBytes / std::max(bytes, 1.0));
  log_line(concat("training a tokenizer of ", vocabulary, " tokens on ",
                  std::llround(share * bytes * 1e-6), " MB of text"));
  TextSource source(files, options.text);
  return train_sentence_piece(
      [&](std::string& text) {
        while (source.next(text)) {
          const auto index = static_cast<double>(source.counts().documents - 1);
          if (std::ceil((index + 1) * share) > std::ceil(index * share)) return true;
        }
        return false;
      },
      vocabulary);
}

/// Sends documents to their split, in order. Holds the last one back, so that no split stays
/// empty.
class Splitter {
 public:
  Splitter(const PrepareOptions& options, const Tokenizer& tokenizer)
      : share_(options.validation),
        seed_(options.seed),
        end_of_document_(tokenizer.end_of_document()),
        train_(options.output / kTrainSplit, tokenizer.vocabulary()),
        validation_(options.output / kValidationSplit, tokenizer.vocabulary()) {}

  /// `tokens` ends with the end of the document.
  void add(std::vector<int32_t> tokens) {
    if (documents_ > 0) split_of(documents_ - 1).add_document(pending_);
    pending_ = std::move(tokens);
    ++documents_;
  }

  void seal() {
    if (documents_ == 1) {
      cut_only_document();
    } else if (train_.documents() == 0) {
      train_.add_document(pending_);
    } else if (validation_.documents() == 0) {
      validation_.add_document(pending_);
    } else {
      split_of(documents_ - 1).add_document(pending_);
    }
    train_.seal();
    validation_.seal();
  }

  void publish() {
    train_.publish();
    validation_.publish();
  }

  SplitSize train() const { return {train_.documents(), train_.tokens()}; }
  SplitSize validation() const { return {validation_.documents(), validation_.tokens()}; }

 private:
  TokenFileWriter& split_of(int64_t index) {
    return is_validation(seed_, index, share_) ? validation_ : train_;
  }

  void cut_only_document() {
    const auto tokens = static_cast<int64_t>(pending_.size());
    const auto tail =
        std::clamp<int64_t>(std::llround(static_cast<double>(tokens) * share_), 1, tokens - 1);
    const auto validation = std::span(pending_).last(static_cast<size_t>(tail));
    validation_.add_document(validation);
    pending_.resize(static_cast<size_t>(tokens - tail));
    pending_.push_back(end_of_document_);
    train_.add_document(pending_);
  }

  double share_;
  uint64_t seed_;
  int32_t end_of_document_;
  TokenFileWriter train_;
  TokenFileWriter validation_;
  std::vector<int32_t> pending_;
  int64_t documents_ = 0;
};

/// Encodes everything, a batch of documents at a time on all threads, written in order.
void encode_all(TextSource& source, const Tokenizer& tokenizer, int64_t total_bytes,
                Splitter& splitter) {
  Progress progress("encoding");
  ThreadPool threads(static_cast<int>(std::max(1U, std::thread::hardware_concurrency())));
  for (bool more = true; more;) {
    std::vector<std::string> texts;
    for (int64_t bytes = 0; bytes < kBatchBytes;) {
      std::string text;
      more = source.next(text);
      if (!more) break;
      bytes += static_cast<int64_t>(text.size());
      texts.push_back(std::move(text));
    }
    std::vector<std::vector<int32_t>> tokens(texts.size());
    threads.for_each(static_cast<int64_t>(texts.size()), [&](int64_t i) {
      std::vector<int32_t>& out = tokens[static_cast<size_t>(i)];
      tokenizer.encode(texts[static_cast<size_t>(i)], out);
      out.push_back(tokenizer.end_of_document());
    });
    for (std::vector<int32_t>& document : tokens) splitter.add(std::move(document));
    progress.update(source.bytes_read(), total_bytes);
  }
  progress.finish(source.bytes_read());
}

/// An existing tokenizer.model is replaced or removed together with the token files, and answers
/// of a task are removed.
void publish_tokenizer(const fs::path& directory, const Tokenizer& tokenizer) {
  for (const char* split : {kTrainSplit, kValidationSplit}) {
    remove_file(answer_path(directory / split));
  }
  if (tokenizer.model().empty()) return remove_file(tokenizer_path(directory));
  write_file(tokenizer_path(directory), tokenizer.model());
}

DatasetDescription write_dataset(const PrepareOptions& options, std::vector<TextFile> files,
                                 Tokenizer tokenizer, const std::string& print,
                                 Preparation& preparation) {
  if (const int32_t vocabulary = vocabulary_to_train(options.tokenizer); vocabulary > 0) {
    tokenizer =
        Tokenizer::from_model(train_tokenizer(options, files, vocabulary), "the trained tokenizer");
  }
  const int64_t total_bytes = bytes_of(files);
  Splitter splitter(options, tokenizer);
  TextSource source(std::move(files), options.text);
  encode_all(source, tokenizer, total_bytes, splitter);
  const TextCounts& counts = source.counts();
  if (counts.documents == 0) {
    throw Error(
        ExitCode::kUsage,
        concat("no text found in --input: ", counts.files, " files read, ", counts.skipped_files,
               " skipped as binary or unreadable, ", counts.skipped_lines, " bad lines"));
  }
  splitter.seal();
  // From here on nothing can go wrong but the disk; without dataset.json there is no data set.
  preparation.begin_replacing();
  splitter.publish();
  publish_tokenizer(options.output, tokenizer);
  const DatasetDescription description{.tokenizer = tokenizer.kind(),
                                       .vocabulary = tokenizer.vocabulary(),
                                       .end_of_document = tokenizer.end_of_document(),
                                       .train = splitter.train(),
                                       .validation = splitter.validation(),
                                       .source_files = counts.files,
                                       .source_documents = counts.documents,
                                       .source_bytes = counts.bytes,
                                       .skipped_files = counts.skipped_files,
                                       .skipped_lines = counts.skipped_lines,
                                       .fingerprint = print};
  write_description(options.output, description);
  preparation.finish();
  return description;
}

}  // namespace

bool is_validation(uint64_t seed, int64_t index, double share) {
  const uint64_t key = seed ^ hash_name("validation split");
  return uniform(philox(key, 0, static_cast<uint64_t>(index))[0]) < share;
}

PrepareResult prepare_dataset(const PrepareOptions& options) {
  if (!(options.validation > 0 && options.validation < 1)) {
    throw Error(ExitCode::kUsage, concat("--validation is ", options.validation,
                                         ", expected a fraction above 0 and below 1"));
  }
  if (options.inputs.empty() || options.output.empty()) {
    throw Error(ExitCode::kUsage, "give at least one --input and one --output");
  }
  std::vector<TextFile> files = list_text_files(options.inputs);
  Tokenizer tokenizer = given_tokenizer(options.tokenizer);
  const std::string print = fingerprint(options, files, tokenizer.model());
  const auto already_there = [&] {
    return holds_dataset(options.output, print, options.overwrite);
  };
  if (already_there()) return {read_description(options.output), true};
  Preparation preparation(options.output, options.overwrite);
  // Another process may have finished between the first look and the lock.
  if (already_there()) return {read_description(options.output), true};
  return {write_dataset(options, std::move(files), std::move(tokenizer), print, preparation),
          false};
}

}  // namespace tessera

#include "runtime/data/prepare.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <iomanip>
#include <memory>
#include <optional>
#include <sstream>
#include <system_error>
#include <thread>
#include <utility>

#include "kernels/core/log.h"
#include "kernels/core/random.h"
#include "kernels/core/thread_pool.h"
#include "runtime/data/progress.h"

namespace tessera {

namespace {

namespace fs = std::filesystem;

constexpr int64_t kBatchBytes = int64_t{8} << 20;
constexpr double kTrainingBytes = 32e6;
constexpr std::string_view kTrainPrefix = "train:";

[[noreturn]] void refuse_output(const fs::path& path, const std::string& why) {
  throw Error(ExitCode::kUsage, concat("--output ", path.string(), " ", why));
}

/// Throws when `directory` has files of our names that no run of ours can have left there.
void check_no_foreign_files(const fs::path& directory) {
  for (const char* name : {"train.bin", "train.idx", "validation.bin", "validation.idx"}) {
    if (!fs::exists(directory / name)) continue;
    refuse_output(directory, concat("has a file ", name,
                                    " that is not part of a finished data set: choose another "
                                    "--output, or give --overwrite to replace it"));
  }
}

/// Locks a directory against other processes that prepare it. The lock ends with the process. The
/// file that is locked stays behind only when the process died while it replaced files: so the
/// next run knows that what it finds are leftovers of ours.
class Preparation {
 public:
  explicit Preparation(const fs::path& directory)
      : path_(directory / "preparation.unfinished"), remove_(!fs::exists(path_)) {
    descriptor_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (descriptor_ < 0) {
      refuse_output(directory,
                    concat("cannot be written: ", std::generic_category().message(errno)));
    }
    if (!lock()) {
      ::close(descriptor_);
      throw Error(ExitCode::kTryAgain, concat(directory.string(),
                                              ": another process is preparing this data set; wait "
                                              "until it is done, or choose another --output"));
    }
  }
  ~Preparation() {
    if (remove_) ::unlink(path_.c_str());
    ::close(descriptor_);
  }
  Preparation(const Preparation&) = delete;
  Preparation& operator=(const Preparation&) = delete;

  static bool has_leftovers(const fs::path& directory) {
    return fs::exists(directory / "preparation.unfinished");
  }
  void begin_replacing() { remove_ = false; }
  void finish() { remove_ = true; }

 private:
  // The file may have been removed by its owner between open and lock: then it guards nothing.
  bool lock() const {
    struct stat locked {};
    struct stat named {};
    return ::flock(descriptor_, LOCK_EX | LOCK_NB) == 0 && ::fstat(descriptor_, &locked) == 0 &&
           ::stat(path_.c_str(), &named) == 0 && locked.st_ino == named.st_ino;
  }

  fs::path path_;
  bool remove_;
  int descriptor_ = -1;
};

/// 64-bit FNV-1a over everything that determines a data set.
class Fingerprint {
 public:
  template <class... Parts>
  void add(const Parts&... parts) {
    for (const char c : concat(parts..., '\n')) {
      hash_ = (hash_ ^ static_cast<uint8_t>(c)) * 0x100000001B3;
    }
  }
  std::string text() const {
    std::ostringstream out;
    out << std::hex << std::setfill('0') << std::setw(16) << hash_;
    return out.str();
  }

 private:
  uint64_t hash_ = 0xCBF29CE484222325;
};

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

/// True when the data set is there already. Throws when something else is.
bool check_output(const PrepareOptions& options, const std::string& wanted) {
  if (!has_dataset(options.output)) return false;
  std::string found;
  try {
    found = read_description(options.output).fingerprint;
  } catch (const Error&) {
    if (!options.overwrite) throw;
  }
  if (found == wanted) return true;
  if (options.overwrite) return false;
  throw Error(ExitCode::kUsage,
              concat(options.output.string(),
                     " holds a data set made from other inputs or with other options: choose "
                     "another --output, or give --overwrite to replace it"));
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

/// An existing tokenizer.model is replaced or removed together with the token files.
void publish_tokenizer(const fs::path& directory, const Tokenizer& tokenizer) {
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
  remove_description(options.output);
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
  if (check_output(options, print)) return {read_description(options.output), true};

  std::error_code problem;
  fs::create_directories(options.output, problem);
  if (problem) refuse_output(options.output, concat("cannot be made: ", problem.message()));
  if (!options.overwrite && !Preparation::has_leftovers(options.output) &&
      !has_dataset(options.output)) {
    check_no_foreign_files(options.output);
  }
  Preparation preparation(options.output);
  // Another process may have finished between the first look and the lock.
  if (check_output(options, print)) return {read_description(options.output), true};
  return {write_dataset(options, std::move(files), std::move(tokenizer), print, preparation),
          false};
}

}  // namespace tessera

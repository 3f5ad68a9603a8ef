#include "checkpoint/shared_load.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <optional>
#include <tuple>
#include <vector>

#include "checkpoint/manifest.pb.h"
#include "checkpoint/segments.h"
#include "checkpoint/state_digest.h"
#include "kernels/core/copy.h"
#include "parallel/agreement.h"

namespace tessera {

namespace {

// Blocks that all ranks together read between two exchanges. A rank that needs everything
// receives as many.
constexpr int64_t kBlocksInARound = 256;

/// Part of a run that lies within one block.
struct Stretch {
  int64_t at;  ///< position in the sequence of all blocks
  int64_t bytes;
  std::byte* to;
};

/// What a rank asks another one for: bytes of its blocks.
struct Request {
  int64_t at;
  int64_t bytes;
};

/// The blocks of all files, one after the other, and who reads them: rank r a stretch of them.
class BlockSequence {
 public:
  BlockSequence(const CheckpointReader& reader, int ranks) : ranks_(ranks) {
    first_.push_back(0);
    for (const wire::File& file : reader.manifest().files()) {
      first_.push_back(first_.back() + file.block_crc32c_size());
    }
  }

  int64_t blocks() const { return first_.back(); }
  int64_t begin_of(int rank) const { return blocks() * rank / ranks_; }
  int64_t position(int file, int64_t offset) const {
    return first_[static_cast<size_t>(file)] * kBlockBytes + offset - kHeaderBytes;
  }
  int file_of(int64_t block) const {
    const auto after = std::upper_bound(first_.begin(), first_.end(), block);
    return static_cast<int>(after - first_.begin()) - 1;
  }
  int64_t first_of(int file) const { return first_[static_cast<size_t>(file)]; }

 private:
  int ranks_;
  std::vector<int64_t> first_;  // of each file, and the end
};

/// What this rank needs in one round: of the blocks that each rank reads then, in their order.
struct Wants {
  std::vector<Request> requests;
  std::vector<const Stretch*> stretches;  // where the answers go
  std::vector<int64_t> requests_to;       // of each rank
  std::vector<int64_t> bytes_from;
};

/// What others need of this rank.
struct Asked {
  std::vector<Request> requests;
  std::vector<int64_t> bytes_to;
};

int64_t sum_of(const std::vector<int64_t>& numbers) {
  return std::accumulate(numbers.begin(), numbers.end(), int64_t{0});
}

class SharedLoad {
 public:
  SharedLoad(Communicator& ranks, Stream& stream, const CheckpointReader& reader)
      : ranks_(ranks), stream_(stream), reader_(reader), sequence_(reader, ranks.size()) {}

  int64_t run(std::span<const TensorGroup> into);

 private:
  void cut(const std::vector<StoredRun>& runs);
  void round(int64_t number);
  Wants wants_in(int64_t number);
  Asked exchange(const Wants& wants);
  std::vector<std::byte> answer(const std::vector<Request>& requests);
  std::span<const std::byte> block(int64_t number);

  size_t size() const { return static_cast<size_t>(ranks_.size()); }
  int64_t width() const { return std::max<int64_t>(1, kBlocksInARound / ranks_.size()); }

  Communicator& ranks_;
  Stream& stream_;         // of the tensors
  Stream host_{Device{}};  // of what the ranks send each other
  const CheckpointReader& reader_;
  BlockSequence sequence_;
  std::vector<Stretch> stretches_;  // by position
  // The blocks that this rank reads in this round, from number window_ on; empty until they are.
  int64_t window_ = 0;
  std::vector<std::vector<std::byte>> read_;
  std::optional<BlockReader> file_;
  std::vector<Segment> segments_;  // of this file
  int opened_ = -1;
  int64_t bytes_read_ = 0;
  std::optional<Failure> failure_;
};

void SharedLoad::cut(const std::vector<StoredRun>& runs) {
  for (const StoredRun& run : runs) {
    int64_t at = sequence_.position(run.file, run.offset);
    std::byte* to = run.to;
    for (int64_t left = run.bytes; left > 0;) {
      const int64_t bytes = std::min(left, kBlockBytes - at % kBlockBytes);
      stretches_.push_back({at, bytes, to});
      at += bytes;
      to += bytes;
      left -= bytes;
    }
  }
  // Runs may overlap: two parts of the model can hold the same elements.
  std::stable_sort(stretches_.begin(), stretches_.end(),
                   [](const Stretch& a, const Stretch& b) { return a.at < b.at; });
}

int64_t SharedLoad::run(std::span<const TensorGroup> into) {
  std::vector<StoredRun> runs;
  for (const TensorGroup& group : into) {
    for (const NamedTensor& target : group.tensors) {
      CHECK(target.data.device() == stream_.device(), "load_together: ", target.name,
            " is not on the device of the stream");
    }
  }
  failure_ = first_failure(ranks_, failure_of([&] { runs = reader_.locate(into); }));
  if (!failure_) {
    cut(runs);
    int64_t longest = 0;
    for (int r = 0; r < ranks_.size(); ++r) {
      longest = std::max(longest, sequence_.begin_of(r + 1) - sequence_.begin_of(r));
    }
    for (int64_t number = 0; number * width() < longest && !failure_; ++number) round(number);
  }
  if (failure_) throw Error(failure_->code, to_text(*failure_, ranks_));
  return bytes_read_;
}

void SharedLoad::round(int64_t number) {
  const Wants wants = wants_in(number);
  const Asked asked = exchange(wants);
  const std::vector<std::byte> sent = answer(asked.requests);
  std::vector<std::byte> received(static_cast<size_t>(sum_of(wants.bytes_from)));
  ranks_.all_to_all(host_, {sent.data(), DType::kU8, {std::ssize(sent)}, Device{}}, asked.bytes_to,
                    {received.data(), DType::kU8, {std::ssize(received)}, Device{}},
                    wants.bytes_from);
  failure_ = first_failure(ranks_, failure_);
  if (failure_) return;
  const std::byte* from = received.data();
  for (const Stretch* stretch : wants.stretches) {
    copy(stream_, {from, DType::kU8, {stretch->bytes}, Device{}},
         {stretch->to, DType::kU8, {stretch->bytes}, stream_.device()});
    from += stretch->bytes;
  }
  stream_.synchronize();
}

Wants SharedLoad::wants_in(int64_t number) {
  const auto before = [](const Stretch& stretch, int64_t at) { return stretch.at < at; };
  Wants wants;
  for (int r = 0; r < ranks_.size(); ++r) {
    const int64_t limit = sequence_.begin_of(r + 1);
    const int64_t begin = std::min(sequence_.begin_of(r) + number * width(), limit);
    const int64_t end = std::min(begin + width(), limit);
    if (r == ranks_.rank()) window_ = begin;
    auto stretch =
        std::lower_bound(stretches_.begin(), stretches_.end(), begin * kBlockBytes, before);
    int64_t count = 0;
    int64_t bytes = 0;
    for (; stretch != stretches_.end() && stretch->at < end * kBlockBytes; ++stretch) {
      wants.stretches.push_back(&*stretch);
      wants.requests.push_back({stretch->at, stretch->bytes});
      ++count;
      bytes += stretch->bytes;
    }
    wants.requests_to.push_back(count);
    wants.bytes_from.push_back(bytes);
  }
  return wants;
}

Asked SharedLoad::exchange(const Wants& wants) {
  std::vector<int64_t> mine(2 * size());
  for (size_t r = 0; r < size(); ++r) {
    mine[2 * r] = wants.requests_to[r];
    mine[2 * r + 1] = wants.bytes_from[r];
  }
  std::vector<int64_t> theirs(2 * size());
  const std::vector<int64_t> one_each(size(), 1);
  const Shape pairs{ranks_.size(), 2};
  ranks_.all_to_all(host_, {mine.data(), DType::kI64, pairs, Device{}}, one_each,
                    {theirs.data(), DType::kI64, pairs, Device{}}, one_each);
  Asked asked;
  std::vector<int64_t> requests_from(size());
  for (size_t r = 0; r < size(); ++r) {
    requests_from[r] = theirs[2 * r];
    asked.bytes_to.push_back(theirs[2 * r + 1]);
  }
  asked.requests.resize(static_cast<size_t>(sum_of(requests_from)));
  ranks_.all_to_all(host_,
                    {wants.requests.data(), DType::kI64, {std::ssize(wants.requests), 2}, Device{}},
                    wants.requests_to,
                    {asked.requests.data(), DType::kI64, {std::ssize(asked.requests), 2}, Device{}},
                    requests_from);
  return asked;
}

// Packed in the order of the requests. What cannot be read is zero, and a failure.
std::vector<std::byte> SharedLoad::answer(const std::vector<Request>& requests) {
  read_.assign(static_cast<size_t>(width()), {});
  int64_t bytes = 0;
  for (const Request& request : requests) bytes += request.bytes;
  std::vector<std::byte> packed(static_cast<size_t>(bytes));
  failure_ = failure_of([&] {
    std::byte* to = packed.data();
    for (const Request& request : requests) {
      const auto begin = static_cast<size_t>(request.at % kBlockBytes);
      const auto part =
          block(request.at / kBlockBytes).subspan(begin, static_cast<size_t>(request.bytes));
      std::memcpy(to, part.data(), part.size());
      to += request.bytes;
    }
  });
  return packed;
}

std::span<const std::byte> SharedLoad::block(int64_t number) {
  std::vector<std::byte>& content = read_[static_cast<size_t>(number - window_)];
  if (!content.empty()) return content;
  const int file = sequence_.file_of(number);
  if (opened_ != file) {
    file_.reset();
    file_ = reader_.open_file(file);
    segments_ = segments_of(reader_.manifest(), file);
    opened_ = file;
  }
  const int64_t local = number - sequence_.first_of(file);
  const int64_t begin = file_->block_offset(local);
  const auto held = within(segments_, begin, begin + kBlockBytes);
  const auto found = file_->block(local, describe(reader_.manifest(), held));
  content.assign(found.begin(), found.end());
  bytes_read_ += std::ssize(content);
  return content;
}

/// Numbers of tensors in reader.tensors().
size_t number_of(const CheckpointReader& reader, TensorKind kind, const std::string& name) {
  const auto& tensors = reader.tensors();
  const auto at = std::partition_point(tensors.begin(), tensors.end(), [&](const TensorFacts& one) {
    return std::tie(one.kind, one.name) < std::tie(kind, name);
  });
  CHECK(at != tensors.end() && at->kind == kind && at->name == name, "load_together: ", name,
        " is owned and not in the checkpoint");
  return static_cast<size_t>(at - tensors.begin());
}

// The sums over all ranks of the digests of what they own, against the manifest.
void check_digests(Communicator& ranks, Stream& stream, const CheckpointReader& reader,
                   std::span<const TensorGroup> owned) {
  const auto& tensors = reader.tensors();
  std::vector<uint64_t> sums(2 * tensors.size());  // digests, then how many ranks own a part
  for (const TensorGroup& group : owned) {
    const std::vector<uint64_t> shares = digest_shares(stream, group.tensors);
    for (size_t i = 0; i < shares.size(); ++i) {
      const size_t number = number_of(reader, group.kind, group.tensors[i].name);
      sums[number] += shares[i];
      sums[tensors.size() + number] = 1;
    }
  }
  sum_digests(ranks, sums);
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (sums[tensors.size() + i] == 0 || sums[i] == tensors[i].digest) continue;
    throw Error(
        ExitCode::kBadData,
        concat(reader.directory().string(), ": the digest of ", name_of(tensors[i].kind), " ",
               tensors[i].name, " as loaded is ", sums[i], ", expected ", tensors[i].digest));
  }
}

}  // namespace

int64_t load_together(Communicator& ranks, Stream& stream, const CheckpointReader& reader,
                      std::span<const TensorGroup> into, std::span<const TensorGroup> owned) {
  const int64_t bytes = SharedLoad(ranks, stream, reader).run(into);
  check_digests(ranks, stream, reader, owned);
  return bytes;
}

}  // namespace tessera

#include "runtime/monitor/event_file.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstring>
#include <system_error>

#include "checkpoint/crc32c.h"
#include "runtime/monitor/event.pb.h"

namespace tessera {

namespace {

namespace fs = std::filesystem;

static_assert(std::endian::native == std::endian::little, "numbers are written as they lie");

constexpr std::string_view kPrefix = "events.out.tfevents.";
constexpr int kRgba = 4;

double now() {
  const std::chrono::duration<double> since = std::chrono::system_clock::now().time_since_epoch();
  return since.count();
}

// The TIME of the newest file, 0 when there is none.
int64_t newest_time(const fs::path& directory) {
  int64_t newest = 0;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(directory, none)) {
    const std::string name = entry.path().filename();
    if (!name.starts_with(kPrefix)) continue;
    int64_t time = 0;
    const std::string_view rest = std::string_view(name).substr(kPrefix.size());
    std::from_chars(rest.data(), rest.data() + rest.size(), time);
    newest = std::max(newest, time);
  }
  return newest;
}

fs::path new_file(const fs::path& directory) {
  std::array<char, 256> host{};
  if (gethostname(host.data(), host.size() - 1) != 0) host[0] = '?';
  const int64_t time = std::max(static_cast<int64_t>(now()), newest_time(directory) + 1);
  std::string digits = std::to_string(time);
  digits.insert(0, digits.size() < 10 ? 10 - digits.size() : 0, '0');
  return directory / concat(kPrefix, digits, ".", host.data(), ".", getpid());
}

// The format masks its CRCs, since the CRC of data that ends with its own CRC is a constant.
uint32_t masked_crc(std::string_view data) {
  const uint32_t crc = crc32c(bytes_of(data));
  return std::rotr(crc, 15) + 0xA282EAD8u;
}

template <class Number>
void put(std::string& out, Number number) {
  std::array<char, sizeof(Number)> bytes{};
  std::memcpy(bytes.data(), &number, sizeof(Number));
  out.append(bytes.data(), bytes.size());
}

tensorboard::Event event_at(int64_t step) {
  tensorboard::Event event;
  event.set_wall_time(now());
  event.set_step(step);
  return event;
}

void write(AppendFile& file, const tensorboard::Event& event) {
  file.append(tf_record(event.SerializeAsString()));
}

}  // namespace

std::string tf_record(std::string_view data) {
  std::string record;
  record.reserve(data.size() + 16);
  put(record, static_cast<uint64_t>(data.size()));
  put(record, masked_crc(record));
  record += data;
  put(record, masked_crc(data));
  return record;
}

EventFile::EventFile(const fs::path& directory, int64_t first_step)
    : file_(new_file(directory), AppendFile::Kind::kBinary) {
  tensorboard::Event version = event_at(0);
  version.set_file_version("brain.Event:2");
  write(file_, version);
  tensorboard::Event start = event_at(first_step);
  start.mutable_session_log()->set_status(tensorboard::SessionLog::START);
  write(file_, start);
}

void EventFile::add_scalars(int64_t step, std::span<const Scalar> scalars) {
  tensorboard::Event event = event_at(step);
  for (const Scalar& scalar : scalars) {
    if (!std::isfinite(scalar.value)) continue;
    tensorboard::Summary::Value& value = *event.mutable_summary()->add_value();
    value.set_tag(scalar.name);
    value.set_simple_value(static_cast<float>(scalar.value));
  }
  write(file_, event);
}

void EventFile::add_histogram(int64_t step, const std::string& tag, const Histogram& histogram) {
  tensorboard::Event event = event_at(step);
  tensorboard::Summary::Value& value = *event.mutable_summary()->add_value();
  value.set_tag(tag);
  tensorboard::Histogram& out = *value.mutable_histo();
  double begin = histogram.begin;
  out.set_min(begin);
  out.set_max(histogram.limits.empty() ? begin : histogram.limits.back());
  // A range without counts in front says where the first one begins.
  out.add_bucket_limit(begin);
  out.add_bucket(0);
  for (size_t i = 0; i < histogram.limits.size(); ++i) {
    const double middle = (begin + histogram.limits[i]) / 2;
    const double count = histogram.counts[i];
    out.set_num(out.num() + count);
    out.set_sum(out.sum() + count * middle);
    out.set_sum_squares(out.sum_squares() + count * middle * middle);
    out.add_bucket_limit(histogram.limits[i]);
    out.add_bucket(count);
    begin = histogram.limits[i];
  }
  write(file_, event);
}

void EventFile::add_picture(int64_t step, const std::string& tag, const Picture& picture) {
  tensorboard::Event event = event_at(step);
  tensorboard::Summary::Value& value = *event.mutable_summary()->add_value();
  value.set_tag(tag);
  tensorboard::Summary::Image& image = *value.mutable_image();
  image.set_height(static_cast<int32_t>(picture.height));
  image.set_width(static_cast<int32_t>(picture.width));
  image.set_colorspace(kRgba);
  image.set_encoded_image_string(std::string(picture.png));
  write(file_, event);
}

}  // namespace tessera

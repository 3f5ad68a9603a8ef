#include "checkpoint/layout.h"

#include <charconv>
#include <string_view>

#include "kernels/core/error.h"

namespace tessera {

namespace {

constexpr std::string_view kNewPrefix = ".new-";

std::string digits(int64_t number, size_t width) {
  const std::string text = std::to_string(number);
  return std::string(text.size() < width ? width - text.size() : 0, '0') + text;
}

std::optional<int64_t> number_of(std::string_view text) {
  int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || number < 0) return std::nullopt;
  return number;
}

}  // namespace

std::string checkpoint_name(int64_t step) {
  return concat("step-", digits(step, 8));
}

std::string checkpoint_name(int64_t step, int64_t epoch) {
  return concat(checkpoint_name(step), ".", epoch_name(epoch));
}

std::optional<int64_t> step_of_name(const std::string& name) {
  if (!name.starts_with("step-")) return std::nullopt;
  const std::string_view rest = std::string_view(name).substr(5);
  const size_t dot = rest.find('.');
  const std::optional<int64_t> step = number_of(rest.substr(0, dot));
  if (!step || !name.starts_with(checkpoint_name(*step))) return std::nullopt;
  if (dot != std::string_view::npos && !epoch_of_name(std::string(rest.substr(dot + 1)))) {
    return std::nullopt;
  }
  return step;
}

std::string new_name(int64_t epoch) {
  return concat(kNewPrefix, epoch_name(epoch));
}

std::optional<int64_t> epoch_of_new_name(const std::string& name) {
  if (!name.starts_with(kNewPrefix)) return std::nullopt;
  return epoch_of_name(name.substr(kNewPrefix.size()));
}

std::string epoch_name(int64_t epoch) {
  return concat("e", digits(epoch, 6));
}

std::optional<int64_t> epoch_of_name(const std::string& name) {
  if (!name.starts_with("e")) return std::nullopt;
  const std::optional<int64_t> epoch = number_of(std::string_view(name).substr(1));
  if (!epoch || *epoch < 1 || epoch_name(*epoch) != name) return std::nullopt;
  return epoch;
}

std::string shard_name(int64_t epoch, int writer, int index) {
  return concat(epoch_name(epoch), "-r", digits(writer, 5), "-", index, ".shard");
}

std::string part_name(int64_t epoch, int writer) {
  return concat(epoch_name(epoch), "-r", digits(writer, 5), ".pb");
}

}  // namespace tessera
